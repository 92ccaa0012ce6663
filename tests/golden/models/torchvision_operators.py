"""Import this before open_clip or timm, which import torchvision.

Its wheel registers these operators only beside its own build of torch, and fails without them.
"""

import importlib.util
from pathlib import Path

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
try:
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    torch.ops.load_library(next(folder.glob("_C*.so")))
except (OSError, StopIteration):
    for operator in ("nms", "qnms"):
        LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
