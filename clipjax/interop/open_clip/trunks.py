"""timm's vision transformers that OpenCLIP's SigLIP models name; timm fixes their constants."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Trunk:
    """One of timm's models: its sizes, and the activation that timm runs it with."""

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str


# name: (patch, width, depth, heads, MLP, {pixels: activation})
_FAMILIES: dict[str, tuple[int, int, int, int, int, dict[int, str]]] = {
    "vit_base_patch32_siglip": (32, 768, 12, 12, 3072, {256: "gelu_tanh"}),
    "vit_base_patch16_siglip": (
        *(16, 768, 12, 12, 3072),
        {224: "gelu", 256: "gelu", 384: "gelu", 512: "gelu"},
    ),
    "vit_large_patch16_siglip": (
        *(16, 1024, 24, 16, 4096),
        {256: "gelu", 384: "gelu", 512: "gelu_tanh"},
    ),
    "vit_so400m_patch14_siglip": (
        *(14, 1152, 27, 16, 4304),
        {224: "gelu", 378: "gelu", 384: "gelu"},
    ),
    "vit_so400m_patch16_siglip": (
        *(16, 1152, 27, 16, 4304),
        {256: "gelu_tanh", 384: "gelu_tanh", 512: "gelu_tanh"},
    ),
    "vit_giantopt_patch16_siglip": (
        *(16, 1536, 40, 16, 6144),
        {256: "gelu_tanh", 384: "gelu_tanh"},
    ),
}
TRUNKS: dict[str, Trunk] = {
    f"{family}_{pixels}": Trunk(
        f"{family}_{pixels}", pixels, patch, width, depth, heads, mlp, activation
    )
    for family, (patch, width, depth, heads, mlp, activations) in _FAMILIES.items()
    for pixels, activation in activations.items()
}


def trunk_of_spec(spec: Mapping[str, Any]) -> Trunk:
    """Finds timm's model of a spec's image tower.

    Raises:
        ValueError: timm has no such model.
    """
    image = spec["image"]
    fields = ("patch_size", "width", "depth", "num_heads", "mlp_dim")
    for trunk in TRUNKS.values():
        same = all(getattr(trunk, field) == image[field] for field in fields)
        if same and trunk.image_size == spec["image_size"]:
            return trunk
    sizes = ", ".join(f"{field} {image[field]}" for field in fields)
    raise ValueError(
        f"timm, which builds OpenCLIP's SigLIP image towers, has none of image_size "
        f"{spec['image_size']}, {sizes}; it has {', '.join(TRUNKS)}"
    )
