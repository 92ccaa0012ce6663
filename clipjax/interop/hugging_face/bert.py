"""BERT's names, which ALIGN's text tower and XLM-RoBERTa share (arXiv:1810.04805)."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import BlockNames, Leaf, leaf, norm_leaves, stack_leaves

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


def leaves(ours: str, theirs: str, tower: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of a tower without its pooler."""
    rows = [leaf(f"{ours}/{a}", f"{theirs}.embeddings.{b}.weight") for a, b in _EMBEDDINGS.items()]
    rows += norm_leaves(f"{ours}/ln_embedding", f"{theirs}.embeddings.LayerNorm")
    rows += stack_leaves(ours, f"{theirs}.encoder.layer", _BLOCK, tower)
    return tuple(rows)
