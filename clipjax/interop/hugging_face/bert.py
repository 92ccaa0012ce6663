"""BERT's names, which ALIGN's text tower and XLM-RoBERTa share (arXiv:1810.04805)."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face.transformer import attention
from clipjax.interop.leaves import Leaf, leaf, linear_leaves, norm_leaves

_EMBEDDINGS = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "segment_embedding": "token_type_embeddings",
}


def leaves(ours: str, theirs: str, tower: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of a tower without its pooler.

    Args:
        ours: path of our encoder.
        theirs: path of the module that holds `embeddings` and `encoder`.
        tower: `text` of the spec.
    """
    rows = [leaf(f"{ours}/{a}", f"{theirs}.embeddings.{b}.weight") for a, b in _EMBEDDINGS.items()]
    rows += norm_leaves(f"{ours}/ln_embedding", f"{theirs}.embeddings.LayerNorm")
    for i in range(tower["depth"]):
        our, their = f"{ours}/transformer/block_{i}", f"{theirs}.encoder.layer.{i}"
        rows += attention(
            f"{our}/attention",
            f"{their}.attention.self",
            tower["num_heads"],
            ("query", "key", "value"),
            f"{their}.attention.output.dense",
        )
        rows += norm_leaves(f"{our}/ln_1", f"{their}.attention.output.LayerNorm")
        rows += linear_leaves(f"{our}/mlp/fc", f"{their}.intermediate.dense")
        rows += linear_leaves(f"{our}/mlp/proj", f"{their}.output.dense")
        rows += norm_leaves(f"{our}/ln_2", f"{their}.output.LayerNorm")
    return tuple(rows)
