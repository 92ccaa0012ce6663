"""BERT as a text tower: its names and the fields of its config (arXiv:1810.04805).

ALIGN, Chinese-CLIP, dual encoders and XLM-RoBERTa share them.
"""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face.transformer import tower_config, tower_spec
from clipjax.interop.leaves import BlockNames, Leaf, leaf, norm_leaves, stack_leaves
from clipjax.interop.section import Section

# What a config.json of transformers means by leaving a field out.
DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}

# Of other tasks, and of the first release of BERT, whose own code is the only one to read them.
_UNREAD = (
    *("classifier_dropout", "directionality", "pooler_fc_size", "pooler_num_attention_heads"),
    *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
)
_EMBEDDINGS = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "segment_embedding": "token_type_embeddings",
}
_BLOCK = BlockNames(
    ln_1="attention.output.LayerNorm",
    ln_2="output.LayerNorm",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    fc="intermediate.dense",
    proj="output.dense",
)


def text_spec(
    text: Section, *, context_length: int, pooling: str, after_pad: bool = False
) -> dict[str, Any]:
    """The text tower of a config, which does not say how long its rows are but for their limit.

    Args:
        text: of the config.
        context_length: what it is where the limit allows it.
        pooling: a field of the tower.
        after_pad: the first token's position is the row behind padding's, as in RoBERTa.
    """
    text.must_be("position_embedding_type", "absolute")
    text.ignore(_UNREAD)
    vocab_size, pad_id = text.integer("vocab_size"), text.get("pad_token_id")
    if not isinstance(pad_id, int) or not 0 <= pad_id < vocab_size:
        raise text.error("pad_token_id", f"an id from 0 to {vocab_size - 1}")
    num_positions, offset = text.integer("max_position_embeddings"), pad_id + 1 if after_pad else 0
    if num_positions <= offset:
        raise text.error("max_position_embeddings", f"more than {offset}")
    return {
        "name": "bert",
        "vocab_size": vocab_size,
        "context_length": min(context_length, num_positions - offset),
        "num_positions": num_positions,
        "position_offset": offset,
        "num_segments": text.integer("type_vocab_size"),
        "pad_id": pad_id,
        "pooling": pooling,
        **tower_spec(text),
    }


def text_config(text: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `text_spec`."""
    return {
        **tower_config(text),
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["num_positions"],
        "type_vocab_size": text["num_segments"],
        "pad_token_id": text["pad_id"],
    }


def leaves(ours: str, theirs: str, tower: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of a tower without its pooler."""
    rows = [leaf(f"{ours}/{a}", f"{theirs}.embeddings.{b}.weight") for a, b in _EMBEDDINGS.items()]
    rows += norm_leaves(f"{ours}/ln_embedding", f"{theirs}.embeddings.LayerNorm")
    rows += stack_leaves(ours, f"{theirs}.encoder.layer", _BLOCK, tower)
    return tuple(rows)


def ignored(name: str) -> bool:
    """Whether a tensor is a buffer of either tower, which holds no parameter."""
    return name.endswith((".embeddings.position_ids", ".embeddings.token_type_ids"))
