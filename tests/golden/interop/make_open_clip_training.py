"""Writes open_clip_training.npz: 20 steps of a small OpenCLIP model, trained by torch.

    python tests/golden/interop/make_open_clip_training.py

needs the [interop] extra. The optimizer and its two groups are those of open_clip_train.main.
"""

import sys
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parent.parent.parent / folder)
    for folder in ("interop", "models", "golden/models")
)
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import numpy as np
import open_clip
import torch
import training_case as case
from open_clip.loss import ClipLoss

HERE = Path(__file__).parent


def make_model():
    model = open_clip.CLIP(**case.CONFIG)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(case.weight(name, tensor.shape)))
    return model.train()


def is_gain_or_bias(name, parameter):
    return parameter.ndim < 2 or any(x in name for x in ("bn", "ln", "bias", "logit_scale"))


def make_optimizer(model):
    named = list(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if is_gain_or_bias(n, p)], "weight_decay": 0.0},
            {
                "params": [p for n, p in named if not is_gain_or_bias(n, p)],
                "weight_decay": case.WEIGHT_DECAY,
            },
        ],
        lr=case.LEARNING_RATE,
        betas=(case.B1, case.B2),
        eps=case.EPS,
    )


def losses():
    """(losses [steps], the logarithms of the scale after each step)"""
    model, loss_fn, found = make_model(), ClipLoss(), []
    optimizer = make_optimizer(model)
    mean, std = torch.tensor(case.MEAN), torch.tensor(case.STD)
    for images, texts in zip(*case.batches(), strict=True):
        pixels = (torch.from_numpy(images).float() / 255 - mean) / std
        loss = loss_fn(*model(pixels.permute(0, 3, 1, 2), torch.from_numpy(texts).long()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
        found.append((loss.item(), model.logit_scale.item()))
    return np.array(found, np.float64).T


def main():
    model = make_model()
    shapes = {name: np.array(x.shape) for name, x in model.state_dict().items()}
    curve, scales = losses()
    np.savez_compressed(
        HERE / "open_clip_training.npz",
        losses=curve,
        logit_scales=scales,
        **{f"shape/{name}": shape for name, shape in shapes.items()},
    )


if __name__ == "__main__":
    main()
