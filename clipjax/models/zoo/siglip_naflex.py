"""SigLIP 2 for images of any aspect: NaFlex (arXiv:2502.14786).

`image_size` is the side of the position table in pixels, and of images where all have one size.
How many patches an image gets is `preprocess.max_patches`: published are 256, 576, 784 and 1024.
"""

from typing import Any

from clipjax.models.zoo import siglip
from clipjax.models.zoo.parts import HALF

# name: the row of one size, whose towers, text and scale it shares
_BASES = {
    "siglip2-b-16-naflex": "siglip2-b-16-256",
    "siglip2-so400m-16-naflex": "siglip2-so400m-16-256",
}


def _row(name: str, base: dict[str, Any]) -> dict[str, Any]:
    image = {
        key: value
        for key, value in base["image"].items()
        if key not in ("pooling", "pre_norm", "patch_bias")
    }
    side = base["image_size"] // image["patch_size"]
    return {
        **base,
        "name": name,
        "image": {**image, "name": "naflex_vit", "position_side": side},
        "preprocess": {
            "resize": "patches",
            "interpolation": "bilinear",
            "max_patches": side * side,
            "mean": HALF,
            "std": HALF,
        },
    }


ROWS: dict[str, dict[str, Any]] = {
    name: _row(name, siglip.ROWS[base]) for name, base in _BASES.items()
}
