"""What a case computes, on both sides: model, batch, dtype; and the small stand-ins of `--tiny`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LEARNING_RATE, B2, EPS, WEIGHT_DECAY = 1e-4, 0.98, 1e-6, 0.2
SEED = 0
# Our name of a model: open_clip's of the same sizes and activations.
OPEN_CLIP_NAMES = {
    "ViT-B-32": "ViT-B-32",
    "ViT-B-16": "ViT-B-16",
    "ViT-L-14": "ViT-L-14",
    "RN50": "RN50-quickgelu",
    "siglip-b-16-224": "ViT-B-16-SigLIP",
}
# What differs between the sides, for whoever reads a ratio.
NOTES = {"siglip-b-16-224": "open_clip's GELU is the exact one, clipjax's the tanh form"}
QUICKSTART = "quickstart"  # the model of configs/quickstart.py

TINY_PIXELS, TINY_PATCH, TINY_TOKENS, TINY_EMBED = 32, 16, 8, 64
_TINY_TOWER = {"width": 64, "depth": 1, "num_heads": 2, "mlp_dim": 128}
_TINY_RESNET = {"layers": [1, 1, 1, 1], "width": 8, "num_heads": 2, "output_dim": TINY_EMBED}


class Size(NamedTuple):
    """What a step computes.

    Attributes:
        model: our name of it.
        batch: examples a step.
        dtype: of the computation; parameters are float32 on both sides.
        tiny: a stand-in of the same kind with one small block a tower, and 4 examples.
    """

    model: str
    batch: int
    dtype: str = "bfloat16"
    tiny: bool = False

    @property
    def examples(self) -> int:
        """The batch in force."""
        return min(self.batch, 4) if self.tiny else self.batch

    @property
    def loss(self) -> str:
        """Name of the loss that the model is trained with."""
        return "siglip" if self.model.startswith("siglip") else "clip"

    @property
    def note(self) -> str:
        """What differs from open_clip's model; "" where nothing does."""
        return "" if self.tiny else NOTES.get(self.model, "")


class Step(NamedTuple):
    """One side's training step, ready to be timed.

    Attributes:
        run: dispatches one step and returns its loss, on the device.
        wait: waits for a loss and returns it as a number.
        facts: what is known before it is timed.
        peak_bytes: the most memory that it has held, and of what: `device` or `process`.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], float]
    facts: dict[str, Any]
    peak_bytes: Callable[[], tuple[int, str]]


def tiny_changes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a row of the zoo that make it the stand-in."""
    is_resnet = row["image"]["name"] == "modified_resnet"
    image = _TINY_RESNET if is_resnet else {**_TINY_TOWER, "patch_size": TINY_PATCH}
    return {
        "embed_dim": TINY_EMBED,
        "image_size": TINY_PIXELS,
        "image": dict(image),
        "text": {**_TINY_TOWER, "context_length": TINY_TOKENS},
    }


def tiny_open_clip(config: dict[str, Any]) -> dict[str, Any]:
    """The stand-in as open_clip's config; a tower of timm becomes open_clip's own."""
    vision = config["vision_cfg"]
    tower = {"image_size": TINY_PIXELS, "width": 64, "head_width": 32, "patch_size": TINY_PATCH}
    if isinstance(vision.get("layers"), list):
        tower = {"image_size": TINY_PIXELS, "width": 8, "patch_size": None}
    layers = [1, 1, 1, 1] if isinstance(vision.get("layers"), list) else 1
    kept = {k: v for k, v in config["text_cfg"].items() if not k.startswith("hf_")}
    text = {**kept, "context_length": TINY_TOKENS, "width": 64, "heads": 2, "layers": 1}
    return {
        **config,
        "embed_dim": TINY_EMBED,
        "vision_cfg": {**tower, "layers": layers},
        "text_cfg": text,
    }
