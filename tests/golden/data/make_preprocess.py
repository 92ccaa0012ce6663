"""Writes preprocess.npz with torchvision, whose transforms the published models were run with.

pip install torch==2.13.0 torchvision==0.28.0 pillow && python make_preprocess.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

# PyPI's torchvision does not load beside a CPU build of torch unless these names exist.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import transforms as T  # noqa: E402
from torchvision.transforms import InterpolationMode as Mode  # noqa: E402

SIZE = 24
SHAPES = ((24, 24), (25, 24), (37, 53), (100, 61), (61, 100), (48, 130), (7, 9), (200, 31))
KERNELS = {"bicubic": Mode.BICUBIC, "bilinear": Mode.BILINEAR}


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[height, width]))
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def main() -> None:
    golden = {}
    for height, width in SHAPES:
        image = Image.fromarray(picture(height, width))
        for name, kernel in KERNELS.items():
            shortest = T.Compose([T.Resize(SIZE, interpolation=kernel), T.CenterCrop(SIZE)])
            squash = T.Resize((SIZE, SIZE), interpolation=kernel)
            golden[f"shortest/{name}/{height}x{width}"] = np.asarray(shortest(image))
            golden[f"squash/{name}/{height}x{width}"] = np.asarray(squash(image))
    np.savez_compressed(Path(__file__).with_name("preprocess.npz"), **golden)


if __name__ == "__main__":
    main()
