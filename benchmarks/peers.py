"""open_clip's side in torch: the training step of its own trainer, encoding, its losses.

Everything here raises MissingError where torch or open_clip is not installed.
"""

import sys
import time
from contextlib import nullcontext
from typing import Any

from benchmarks.common import ROOT, MissingError, gpus, status_bytes
from benchmarks.sizes import (
    B2,
    EPS,
    LEARNING_RATE,
    OPEN_CLIP_NAMES,
    QUICKSTART,
    SEED,
    WEIGHT_DECAY,
    Size,
    Step,
    tiny_open_clip,
)


def libraries() -> tuple[Any, Any]:
    """torch and open_clip.

    Raises:
        MissingError: one of them is not installed.
    """
    try:
        import torch

        folder = str(ROOT / "tests" / "golden" / "models")
        if folder not in sys.path:
            sys.path.append(folder)
        import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision
        import open_clip
    except ImportError as error:
        raise MissingError(f"{error.name or 'torch'} is not installed") from None
    # What open_clip's trainer sets before it begins.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(SEED)
    return torch, open_clip


def device_of(torch: Any) -> Any:
    """The GPU, or the CPU of a machine without one.

    Raises:
        MissingError: this machine has a GPU that torch does not see.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if gpus():
        raise MissingError("this machine has a GPU that torch does not see: is it built for CUDA?")
    return torch.device("cpu")


def build(size: Size) -> Any:
    """open_clip's model, random weights, on the device."""
    torch, open_clip = libraries()
    if size.model == QUICKSTART:
        config = quickstart_config()
    else:
        config = open_clip.get_model_config(OPEN_CLIP_NAMES[size.model])
        if size.tiny:
            config = tiny_open_clip(config)
    custom = config.pop("custom_text", False)
    made = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config, output_dict=True)
    return made.to(device_of(torch))


def quickstart_config() -> dict[str, Any]:
    """The towers of configs/quickstart.py."""
    return {
        "embed_dim": 128,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 48,
            "layers": 4,
            "width": 128,
            "head_width": 32,
            "patch_size": 8,
            "patch_dropout": 0.25,
            "pool_type": "tok",
        },
        "text_cfg": {
            "context_length": 18,
            "vocab_size": 49408,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def random_batch(torch: Any, model: Any, batch: int, device: Any) -> tuple[Any, Any]:
    """Normalised pixels and tokens of whole lengths, on the device."""
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    images = torch.randn(batch, 3, height, width, device=device)
    tokens = torch.randint(1, model.vocab_size - 1, (batch, model.context_length), device=device)
    tokens[:, -1] = model.vocab_size - 1
    return images, tokens


def autocast_of(torch: Any, device: Any, dtype: str) -> Any:
    """amp_bf16 as open_clip's trainer has it, or nothing for float32."""
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def make_step(size: Size, *, compiled: bool = False) -> Step:
    """Builds the step of open_clip's trainer: forward, loss, backward, AdamW, the scale's clamp.

    Args:
        size: what it computes.
        compiled: by torch.compile, which happens in the first step.
    """
    torch, open_clip = libraries()
    device = device_of(torch)
    model = build(size).train()
    images, tokens = random_batch(torch, model, size.examples, device)
    loss_fn = open_clip.loss.ClipLoss() if size.loss == "clip" else open_clip.loss.SigLipLoss()
    gains = [p for n, p in model.named_parameters() if is_gain(n, p)]
    rest = [p for n, p in model.named_parameters() if not is_gain(n, p)]
    optimizer = torch.optim.AdamW(
        [
            {"params": gains, "weight_decay": 0.0},
            {"params": rest, "weight_decay": WEIGHT_DECAY},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, B2),
        eps=EPS,
    )
    autocast = autocast_of(torch, device, size.dtype)
    forward = torch.compile(model) if compiled else model

    def run() -> Any:
        optimizer.zero_grad()
        with autocast():
            out = forward(images, tokens)
            loss = loss_fn(**out)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss.detach()

    begin = time.perf_counter()
    first = float(run())
    facts = {
        **device_facts(torch, device),
        "settings": {"compiled": compiled, "amp": size.dtype != "float32"},
        "compile_s": time.perf_counter() - begin,  # of eager: cuDNN's and cuBLAS's first calls
        "loss_first": first,
    }
    return Step(run, float, facts, peak_bytes_of(torch, device))


def is_gain(name: str, parameter: Any) -> bool:
    """What open_clip's trainer does not decay: gains, biases and the scale."""
    return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def device_facts(torch: Any, device: Any) -> dict[str, Any]:
    """The device that torch computes on."""
    if device.type == "cuda":
        return {"platform": "gpu", "device": torch.cuda.get_device_name()}
    return {"platform": "cpu", "device": "cpu", "threads": torch.get_num_threads()}


def peak_bytes_of(torch: Any, device: Any) -> Any:
    """The function of `Step.peak_bytes`."""
    if device.type == "cuda":
        return lambda: (int(torch.cuda.max_memory_allocated()), "device")
    return lambda: (status_bytes("VmHWM"), "process")


def make_loss_step(image: Any, text: Any) -> Step:
    """ClipLoss, forward and backward, of the same embeddings in bfloat16."""
    torch, open_clip = libraries()
    device = device_of(torch)
    leaves = [torch.tensor(x).to(device, torch.bfloat16).requires_grad_() for x in (image, text)]
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    loss_fn = open_clip.loss.ClipLoss()
    peak = peak_bytes_of(torch, device)
    before = status_bytes("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = int(torch.cuda.memory_allocated())

    def run() -> Any:
        for leaf in (*leaves, scale):
            leaf.grad = None
        loss = loss_fn(*leaves, scale)
        loss.backward()
        return loss.detach()

    facts = {
        **device_facts(torch, device),
        "compile_s": 0.0,
        "memory_before_gb": before / 1e9,
    }
    return Step(run, float, facts, peak)


def make_encoders(size: Size) -> tuple[Any, Any, dict[str, Any]]:
    """Functions that encode one batch of images, one of texts, without gradients; facts."""
    torch, _ = libraries()
    device = device_of(torch)
    model = build(size).eval()
    images, tokens = random_batch(torch, model, size.examples, device)
    autocast = autocast_of(torch, device, size.dtype)

    def encode(method: Any, rows: Any) -> Any:
        with torch.inference_mode(), autocast():
            return method(rows, normalize=True).float()

    def wait(rows: Any) -> None:
        float(rows.sum())

    return (
        (lambda: encode(model.encode_image, images), lambda: encode(model.encode_text, tokens)),
        wait,
        device_facts(torch, device),
    )


def make_picture_encoder(size: Size) -> Any:
    """JPEG files to unit embeddings, as open_clip's README does it."""
    import io

    from PIL import Image

    torch, _ = libraries()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    device = device_of(torch)
    model = build(size).eval()
    pixels = model.visual.image_size
    pixels = pixels[0] if isinstance(pixels, tuple | list) else pixels
    transform = image_transform_v2(PreprocessCfg(size=pixels), is_train=False)
    autocast = autocast_of(torch, device, size.dtype)

    def encode(files: list[bytes]) -> Any:
        rows = [transform(Image.open(io.BytesIO(file))) for file in files]
        found = []
        with torch.inference_mode(), autocast():
            for begin in range(0, len(rows), size.examples):
                batch = torch.stack(rows[begin : begin + size.examples]).to(device)
                found.append(model.encode_image(batch, normalize=True).float().cpu().numpy())
        return found

    return encode


def make_head_builder(size: Size) -> Any:
    """Class names to a zero-shot classifier, by open_clip's own function and templates."""
    torch, open_clip = libraries()
    device = device_of(torch)
    model = build(size).eval()
    tokenizer = open_clip.get_tokenizer(OPEN_CLIP_NAMES[size.model])
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES

    def make(names: list[str]) -> Any:
        with torch.inference_mode():
            found = open_clip.build_zero_shot_classifier(
                model, tokenizer, list(names), templates, device=device
            )
        return found.cpu().numpy()

    return make
