"""Writes pictures.json: hashes of the pixels that the reference preprocessing gives odd pictures.

pip install open_clip_torch==3.3.0 transformers==4.57.6 torch==2.13.0 torchvision==0.28.0
python make_pictures.py
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
import odd_pictures as odd
import reference_preprocessing as reference

HERE = Path(__file__).parent


def digest(pixels: np.ndarray) -> str:
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def main() -> None:
    open_clip, clip, siglip = {}, {}, {}
    for height, width in odd.SHAPES:
        image, name = odd.picture(height, width), f"{height}x{width}"
        for resize in ("shortest", "squash"):
            for kernel in ("bicubic", "bilinear"):
                pixels = reference.open_clip(image, odd.SIZE, resize, kernel)
                open_clip[f"{resize}/{kernel}/{name}"] = digest(pixels)
        clip[name] = digest(reference.transformers_clip(image, odd.SIZE))
        siglip[name] = digest(reference.transformers_siglip(image, odd.SIZE))
    modes = {
        name: digest(reference.open_clip(rgb, odd.SIZE, "shortest", "bicubic"))
        for name, (_, rgb) in odd.modes().items()
    }
    align = {
        f"{height}x{width}": digest(reference.transformers_align(odd.picture(height, width)))
        for height, width in odd.ALIGN_SHAPES
    }
    golden = {
        "versions": reference.versions(),
        "constants": {row: reference.constants(row) for row in reference.PRETRAINED},
        "open_clip": open_clip,
        "transformers_clip": clip,
        "transformers_siglip": siglip,
        "modes": modes,
        "align": align,
    }
    (HERE / "pictures.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
