"""Cases of parity.py against open_clip (torch): OpenCLIP's own configs, seeded weights.

Small models have their published shapes; large ones their full widths and two blocks a tower, or
one a stage.
"""

import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.extend(
    str(Path(__file__).parent.parent / "tests" / "golden" / folder)
    for folder in ("interop", "models")
)
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import numpy as np
import open_clip
import seeded
import timm
import torch
import transformers
from open_clip import hf_model
from open_clip.loss import ClipLoss, SigLipLoss
from parity import Reference
from published_weights import weight

from clipjax.interop.open_clip.config_in import spec_of_config
from clipjax.interop.open_clip.names import is_buffer, leaves, names_of_spec, plain_names
from clipjax.interop.open_clip.shapes import draft_of
from clipjax.interop.tensors import of_array

BATCH = 4
# Of 60 draws of images the one that keeps farthest from the kinks of a seeded RN50.
SMOOTH_DRAW, MARGIN = 56, 1e-6
BARS = {"text": 2e-6, "logits": 1e-4, "text layers": 1e-5, "gradient": 1e-4}
XLM_ROBERTA = {"xlm-roberta-base": (12, 768, 12), "xlm-roberta-large": (24, 1024, 16)}


def config_of(name: str, depth: int | None, size: int | None) -> dict[str, Any]:
    """OpenCLIP's config of a model, with another depth and size where they are not None."""
    config = open_clip.get_model_config(name)
    if size is not None:
        config["vision_cfg"]["image_size"] = size
    if depth is not None:
        vision = config["vision_cfg"]
        if isinstance(vision.get("layers"), list):
            vision["layers"] = [1, 1, 1, 1]
        elif "timm_model_name" not in vision:
            vision["layers"] = depth
        if "hf_model_name" not in config["text_cfg"]:
            config["text_cfg"]["layers"] = depth
    return config


def build(config: dict[str, Any], depth: int | None) -> torch.nn.Module:
    """OpenCLIP's model of a config, without a download."""
    config = copy.deepcopy(config)
    config["text_cfg"].pop("hf_model_pretrained", None)
    name = config["text_cfg"].get("hf_model_name")
    custom = config.pop("custom_text", False) or name is not None
    create = functools.partial(timm.create_model, **({} if depth is None else {"depth": depth}))
    with (
        mock.patch.object(timm, "create_model", create),
        mock.patch.object(hf_model.AutoConfig, "from_pretrained", lambda _: xlm(name, depth)),
    ):
        if name is not None:
            config["text_cfg"]["hf_model_pretrained"] = False
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def xlm(name: str, depth: int | None) -> Any:
    """transformers' config of an XLM-RoBERTa, which it would fetch."""
    layers, width, heads = XLM_ROBERTA[name]
    return transformers.XLMRobertaConfig(
        vocab_size=250002,
        hidden_size=width,
        num_hidden_layers=depth or layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def seed(model: torch.nn.Module) -> None:
    """Fills every weight from its name."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(weight(name, tensor.shape)))


def smooth_images(model: torch.nn.Module, size: int) -> np.ndarray:
    """Images for which no ReLU of a training step sees a value near 0.

    What enters a ReLU differs by rounding between any two programs. A value that lands on the other
    side of 0 changes its channel's gradient by one position's share, a hundredth: torch's own
    float32 and float64 differ by that much.
    """
    images = np.random.RandomState(SMOOTH_DRAW).standard_normal((BATCH, size, size, 3))
    images = images.astype(np.float32)
    smallest: list[float] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, x: smallest.append(float(x[0].abs().min())))
        for module in model.visual.modules()
        if isinstance(module, torch.nn.ReLU)
    ]
    running = {k: v.clone() for k, v in model.state_dict().items() if is_buffer_of_norm(k)}
    with torch.no_grad():
        model.train().visual(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    model.load_state_dict(running, strict=False)
    model.eval()
    for hook in hooks:
        hook.remove()
    if min(smallest) < MARGIN:
        raise RuntimeError(f"draw {SMOOTH_DRAW} comes within {min(smallest)} of a kink; try others")
    return images


def is_buffer_of_norm(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")


def make_inputs(config: dict[str, Any], spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    text = spec["text"]
    tokens = seeded.tokens(BATCH, text["context_length"], text["vocab_size"])
    if "hf_model_name" in config["text_cfg"]:  # padding is 1, and stands at the end
        tokens = np.where(tokens == 0, 1, np.maximum(tokens, 2))
    return seeded.images(BATCH, spec["image_size"]), tokens


def text_blocks(model: torch.nn.Module) -> Any:
    text = getattr(model, "text", model)
    if hasattr(text.transformer, "encoder"):
        return text.transformer.encoder.layer
    return text.transformer.resblocks


def run(
    name: str, *, depth: int | None = None, size: int | None = None, gradients: bool = False
) -> Reference:
    """Builds one of OpenCLIP's models, seeds it and runs it."""
    torch.manual_seed(0)
    config = config_of(name, depth, size)
    model = build(config, depth).eval()
    seed(model)
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    tensors = plain_names({key: of_array(x) for key, x in state.items()})
    spec = spec_of_config(draft_of(tensors), {"model_cfg": config}, where=name)
    spec["image"].pop("positions", None)  # CLIPA's table is drawn here like every other weight
    images, tokens = make_inputs(config, spec)
    is_resnet = spec["image"]["name"] == "modified_resnet"
    if is_resnet and gradients:
        images = smooth_images(model, spec["image_size"])
    hidden: list[torch.Tensor] = []
    for block in text_blocks(model):
        block.register_forward_hook(lambda _, __, out: hidden.append(_first(out).detach()))
    inputs = (torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(tokens).long())
    with torch.no_grad():
        image_embeds, text_embeds, scale, *bias = model(*inputs)
        logits = scale * image_embeds @ text_embeds.T + sum(bias)
    is_bert = "hf_model_name" in config["text_cfg"]
    return Reference(
        spec=spec,
        leaves=leaves(spec),
        tensors={k: x.read() for k, x in names_of_spec(tensors, spec).items()},
        images=images,
        tokens=tokens,
        image_embeds=image_embeds.numpy(),
        text_embeds=text_embeds.numpy(),
        logits=logits.numpy(),
        text_hidden=torch.stack(hidden[: len(text_blocks(model))]).numpy(),
        gradients=_gradients(model, inputs) if gradients else None,
        bars={**BARS, "image": 5e-6 if is_resnet else 2e-6},
        ignored=is_buffer,
        attended=tokens != 1 if is_bert else None,
    )


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def _gradients(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    """Of a training step's forward pass: batch normalisation takes the batch's own statistics.

    In float64, so that the difference is our rounding alone.
    """
    images, tokens = inputs
    outputs = model.double().train()(images.double(), tokens)
    (ClipLoss() if len(outputs) == 3 else SigLipLoss())(*outputs).backward()
    return {name: p.grad.float().numpy() for name, p in model.named_parameters()}


def _case(name: str, **options: Any) -> Callable[[], Reference]:
    return functools.partial(run, name, **options)


_FULL = ("RN50", "ViT-B-32", "ViT-B-16", "ViT-B-16-SigLIP")
_REDUCED = ("RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-S-16", "ViT-B-16-plus-240", "ViT-L-14")
_REDUCED += ("ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14")
_REDUCED += ("ViT-L-16-SigLIP-384", "ViT-SO400M-14-SigLIP-384", "ViT-SO400M-16-SigLIP-i18n-256")
_REDUCED += ("ViT-B-16-SigLIP2", "ViT-SO400M-16-SigLIP2-256", "ViT-gopt-16-SigLIP2-256")
_REDUCED += ("ViT-L-14-CLIPA", "ViT-H-14-CLIPA", "ViT-bigG-14-CLIPA")
_REDUCED += ("PE-Core-L-14-336", "PE-Core-bigG-14-448")
_REDUCED += ("xlm-roberta-base-ViT-B-32", "xlm-roberta-large-ViT-H-14")
CASES: dict[str, Callable[[], Reference]] = {
    **{name: _case(name) for name in _FULL},
    "ViT-B-32, quick GELU": _case("ViT-B-32-quickgelu"),
    "ViT-B-32, 2 blocks": _case("ViT-B-32", depth=2, gradients=True),
    "RN50, 4 blocks, 64 pixels": _case("RN50", depth=2, size=64, gradients=True),
    "PE-Core-B-16, 2 blocks": _case("PE-Core-B-16", depth=2, gradients=True),
    "ViT-B-16-SigLIP, 2 blocks": _case("ViT-B-16-SigLIP", depth=2, gradients=True),
    **{
        f"{name}, {4 if name.startswith('RN') else 2} blocks": _case(name, depth=2)
        for name in _REDUCED
    },
}
