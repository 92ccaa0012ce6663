"""Write open_clip.npz: losses and gradients of open_clip's ClipLoss and SigLipLoss.

    python tests/golden/losses/make_open_clip.py     needs the extra [interop]

Embeddings are float32; torch computes in float64, so that the arrays hold the maths and not one
machine's rounding.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

CASES = {  # batch, embed, scale, bias, noise
    "start": (24, 16, 14.2857, -10.0, 0.4),
    "trained": (24, 16, 100.0, -16.5, 0.1),
    "one": (1, 8, 10.0, -2.0, 0.4),
}


def import_losses():
    # torchvision's operators are not part of every torch build; open_clip only imports it.
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from open_clip.loss import ClipLoss, SigLipLoss

    return {"clip": ClipLoss(), "siglip": SigLipLoss()}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main():
    arrays = {
        "versions": np.array(f"open_clip {version('open_clip_torch')}, torch {version('torch')}")
    }
    losses = import_losses()
    for case, (batch, embed, scale, bias, noise) in CASES.items():
        rng = np.random.default_rng(len(case))
        image = unit(rng.standard_normal((batch, embed)))
        text = unit(image + noise * rng.standard_normal((batch, embed))).astype(np.float32)
        image = image.astype(np.float32)
        log_scale, bias = np.float32(np.log(scale)), np.float32(bias)
        for name, value in zip(
            ("image", "text", "scale", "bias"), (image, text, log_scale, bias), strict=True
        ):
            arrays[f"{case}/{name}"] = value
        for name, loss_fn in losses.items():
            leaves = [
                torch.tensor(x, dtype=torch.float64, requires_grad=True)
                for x in (image, text, log_scale, bias)
            ]
            loss = loss_fn(leaves[0], leaves[1], leaves[2].exp(), logit_bias=leaves[3])
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            arrays[f"{case}/{name}/loss"] = loss.item()
            for key, gradient, leaf in zip(
                ("image", "text", "scale", "bias"), gradients, leaves, strict=True
            ):
                gradient = torch.zeros_like(leaf) if gradient is None else gradient
                arrays[f"{case}/{name}/d_{key}"] = gradient.numpy()
    np.savez_compressed(Path(__file__).with_name("open_clip.npz"), **arrays)


if __name__ == "__main__":
    main()
