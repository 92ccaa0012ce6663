"""Siglip2Model, SigLIP 2 for images of any aspect (NaFlex): its tensors.

All but the patches is as in SiglipModel (arXiv:2502.14786).
"""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.hugging_face import siglip
from clipjax.interop.leaves import LINEAR, Leaf, leaf, reshape


def leaves(spec: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The table of tensors: a patch is a row of numbers, and its embedding a matrix."""
    size, width = spec["image"]["patch_size"], spec["image"]["width"]
    as_matrix = LINEAR.then(reshape((size * size * 3, width), (size, size, 3, width)))
    name = "image_encoder/patch_kernel"
    theirs = "vision_model.embeddings.patch_embedding.weight"
    return tuple(
        leaf(name, theirs, as_matrix) if row.name == name else row for row in siglip.leaves(spec)
    )
