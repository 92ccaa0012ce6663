"""Import this before open_clip or timm, which import torchvision.

Its wheel registers these operators only beside its own build of torch, and fails without them.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
