"""Cases of parity.py against transformers (torch): rows of the zoo as its classes, seeded weights.

Small models have their published shapes; large ones their full widths and fewer blocks.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests" / "golden" / "models"))
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import numpy as np
import seeded
import torch
import transformers
from parity import Reference

from clipjax.config import merge
from clipjax.interop.hugging_face.config_json import FAMILIES, read_config, write_config
from clipjax.models import MODELS

BATCH = 4
SCALE = 100.0
# What writes into a residual stream is smaller, so that it stays of one size through all layers.
SMALLER = {
    "out_proj.weight": (2 * 12) ** -0.5,
    "mlp.fc2.weight": (2 * 12) ** -0.5,
    "project_bn.weight": 0.05,
}
BARS = {"image": 2e-6, "text": 2e-6, "logits": 1e-4, "text layers": 1e-5, "gradient": 1e-4}


def build(spec: Mapping[str, Any]) -> tuple[str, torch.nn.Module, dict[str, Any]]:
    """The family, transformers' model of a spec, and the spec read back from its whole config."""
    kind, config = write_config(spec)
    del config["clipjax"]
    theirs = transformers.AutoConfig.for_model(**config)
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[kind].ARCHITECTURE)(theirs).eval()
    _, found, _ = read_config(json.loads(theirs.to_json_string(use_diff=False)), "config")
    if kind == "align":  # its files of tokenizer and processor say these two
        found["image_size"] = spec["image_size"]
        found["text"]["context_length"] = spec["text"]["context_length"]
    return kind, model, {**found, "name": spec["name"], "tokenizer": spec["tokenizer"]}


def seed(model: torch.nn.Module) -> None:
    """Fills every weight from its name."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "logit_scale":
                tensor.fill_(float(np.log(SCALE)))
            elif name == "temperature":
                tensor.fill_(1 / SCALE)
            elif tensor.is_floating_point():
                value = torch.from_numpy(seeded.weight(name, tuple(tensor.shape)))
                factors = [x for ending, x in SMALLER.items() if name.endswith(ending)]
                tensor.copy_(value * (factors or [1.0])[0])


def calibrate(model: torch.nn.Module, images: np.ndarray) -> None:
    """Sets the running statistics to those of the batch.

    Fifty blocks that do not normalise are chaotic: torch's own float32 and float64 then differ by
    half of the result.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model.vision_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    model.eval()


def inputs_of(kind: str, spec: Mapping[str, Any], images: np.ndarray, tokens: np.ndarray) -> dict:
    """What the class takes: pixels, or patches of one grid; a mask for BERT's padding."""
    found = {"input_ids": torch.from_numpy(tokens).long()}
    if kind == "siglip2":
        size, side = spec["image"]["patch_size"], spec["image"]["position_side"]
        cut = images.reshape(BATCH, side, size, side, size, 3).swapaxes(2, 3)
        found["pixel_values"] = torch.from_numpy(cut.reshape(BATCH, side * side, -1).copy())
        found["pixel_attention_mask"] = torch.ones(BATCH, side * side, dtype=torch.long)
        found["spatial_shapes"] = torch.tensor([[side, side]] * BATCH)
    else:
        found["pixel_values"] = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if kind == "align":
        found["attention_mask"] = (found["input_ids"] != 0).long()
    return found


def run(name: str, *, gradients: bool = False, **changes: Any) -> Reference:
    """Builds a row of the zoo as transformers' class, seeds it and runs it."""
    kind, model, spec = build(merge(MODELS[name], changes))
    seed(model)
    text = spec["text"]
    images = seeded.images(BATCH, spec["image_size"] // 4 * 4)
    missing = spec["image_size"] - images.shape[1]
    images = np.pad(images, ((0, 0), (0, missing), (0, missing), (0, 0)), "edge")
    if kind == "align":
        calibrate(model, images)
    tokens = seeded.tokens(BATCH, text["context_length"], text["vocab_size"])
    hidden: list[torch.Tensor] = []
    layers = model.text_model.encoder
    for layer in layers.layer if kind == "align" else layers.layers:
        layer.register_forward_hook(
            lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
    inputs = inputs_of(kind, spec, images, tokens)
    with torch.no_grad():
        out = model(**inputs)
    for embeds in (out.image_embeds, out.text_embeds):  # or no difference would be seen
        assert (embeds[:1] - embeds[1:]).abs().max(dim=1).values.min() > 1e-3
    family = FAMILIES[kind]
    return Reference(
        spec=spec,
        leaves=family.leaves(spec),
        tensors={name: x.numpy().copy() for name, x in model.state_dict().items()},
        images=images,
        tokens=tokens,
        image_embeds=out.image_embeds.numpy(),
        text_embeds=out.text_embeds.numpy(),
        logits=out.logits_per_image.numpy(),
        text_hidden=torch.stack(hidden).numpy(),
        gradients=_gradients(model, inputs) if gradients else None,
        bars={**BARS, "image": 5e-6 if kind == "align" else 2e-6},
        ignored=family.ignored,
        attended=tokens != 0 if kind == "align" else None,
    )


def _gradients(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Of the loss, in float64, so that the difference is our rounding alone."""
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].double()}
    torch.set_default_dtype(torch.float64)  # of the mask that transformers makes
    model.double()(**inputs, return_loss=True).loss.backward()
    torch.set_default_dtype(torch.float32)
    return {name: p.grad.float().numpy() for name, p in model.named_parameters()}


_TWO = {"image": {"depth": 2}, "text": {"depth": 2}}
CASES: dict[str, Callable[[], Reference]] = {
    "CLIPModel ViT-B-32": functools.partial(run, "ViT-B-32-quickgelu"),
    "CLIPModel ViT-B-32, 2 blocks": functools.partial(run, "ViT-B-32", gradients=True, **_TWO),
    # The text towers of Stable Diffusion 1 and 2, whole.
    "CLIPModel ViT-L-14, image 2 blocks": functools.partial(
        run, "ViT-L-14-quickgelu", image={"depth": 2}
    ),
    "CLIPModel ViT-H-14, image 2 blocks": functools.partial(run, "ViT-H-14", image={"depth": 2}),
    "CLIPModel ViT-bigG-14, 2 blocks": functools.partial(run, "ViT-bigG-14", **_TWO),
    "SiglipModel siglip-b-16-224": functools.partial(run, "siglip-b-16-224"),
    "SiglipModel siglip-so400m-14-384, 2 blocks": functools.partial(
        run, "siglip-so400m-14-384", **_TWO
    ),
    "SiglipModel siglip2-b-16-224, 2 blocks": functools.partial(run, "siglip2-b-16-224", **_TWO),
    "SiglipModel siglip2-g-opt-16-256, 2 blocks": functools.partial(
        run, "siglip2-g-opt-16-256", **_TWO
    ),
    "Siglip2Model siglip2-b-16-naflex, 2 blocks": functools.partial(
        run, "siglip2-b-16-naflex", **_TWO
    ),
    "AlignModel align-base": functools.partial(run, "align-base"),
}
