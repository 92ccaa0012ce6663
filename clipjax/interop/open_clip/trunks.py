"""timm's vision transformers in OpenCLIP, SigLIP's and PE's; timm fixes their constants."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Trunk:
    """One of timm's models: its sizes, and what timm runs it with.

    Attributes:
        encoder: our image tower that it is.
        has_projection: whether its last layer is the projection; else there is none.
    """

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    encoder: str = "vit"
    layer_norm_eps: float = 1e-6
    has_projection: bool = False


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
# name: (pixels, patch, width, depth, heads, MLP)
_PE_CORE = {
    "vit_pe_core_tiny_patch16_384": (384, 16, 192, 12, 3, 768),
    "vit_pe_core_small_patch16_384": (384, 16, 384, 12, 6, 1536),
    "vit_pe_core_base_patch16_224": (224, 16, 768, 12, 12, 3072),
    "vit_pe_core_large_patch14_336": (336, 14, 1024, 24, 16, 4096),
    "vit_pe_core_gigantic_patch14_448": (448, 14, 1536, 50, 16, 8960),
}
TRUNKS |= {
    name: Trunk(name, *sizes, "gelu", "perception_encoder", 1e-5, has_projection=True)
    for name, sizes in _PE_CORE.items()
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
        same &= trunk.encoder == image["name"]
        if same and trunk.image_size == spec["image_size"]:
            return trunk
    sizes = ", ".join(f"{field} {image[field]}" for field in fields)
    raise ValueError(
        f"timm, which builds this kind of OpenCLIP's image towers, has none of image_size "
        f"{spec['image_size']}, {sizes}; it has {', '.join(TRUNKS)}"
    )
