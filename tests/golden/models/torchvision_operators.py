"""Import this before open_clip or timm, which import torchvision.

Its wheel registers these operators only beside its own build of torch, and fails without them.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
