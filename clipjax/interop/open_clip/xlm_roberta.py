"""transformers' XLM-RoBERTa, which OpenCLIP wraps as the text tower of its multilingual models."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import bert
from clipjax.interop.leaves import LINEAR, Leaf, leaf
from clipjax.interop.open_clip.vit import TEXT


def xlm_roberta_leaves(spec: Mapping[str, Any]) -> list[Leaf]:
    """The tower by BERT's names, and the projection of two layers."""
    found = list(bert.leaves(TEXT, "text.transformer", spec["text"]))
    projection = spec.get("text_projection", "linear")
    if projection == "mlp":
        found.append(leaf("text_projection/fc/kernel", "text.proj.0.weight", LINEAR))
        found.append(leaf("text_projection/proj/kernel", "text.proj.2.weight", LINEAR))
    elif projection == "linear":
        found.append(leaf("text_projection/kernel", "text.proj.weight", LINEAR))
    return found
