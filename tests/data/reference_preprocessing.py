"""The reference preprocessing, run as published: open_clip's and transformers'. Needs [interop]."""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "golden" / "models"))
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import image_transform
from transformers import (
    CLIPImageProcessor,
    EfficientNetImageProcessor,
    SiglipImageProcessor,
)

# Row of the zoo -> model and tag of open_clip.
PRETRAINED = {
    "ViT-B-32": ("ViT-B-32", "laion2b_s34b_b79k"),
    "ViT-B-32-quickgelu": ("ViT-B-32", "openai"),
    "RN50": ("RN50", "openai"),
    "ViT-L-14": ("ViT-L-14", "datacomp_xl_s13b_b90k"),
    "ViT-L-14-laion2b": ("ViT-L-14", "laion2b_s32b_b82k"),
    "ViT-H-14-quickgelu": ("ViT-H-14-quickgelu", "metaclip_fullcc"),
    "ViT-H-14-quickgelu-dfn": ("ViT-H-14-quickgelu", "dfn5b"),
    "ViT-H-14-378-quickgelu": ("ViT-H-14-378-quickgelu", "dfn5b"),
    "ViT-bigG-14": ("ViT-bigG-14", "laion2b_s39b_b160k"),
    "ViT-H-14-CLIPA": ("ViT-H-14-CLIPA", "datacomp1b"),
    "ViT-L-14-CLIPA-336": ("ViT-L-14-CLIPA-336", "datacomp1b"),
    "siglip-b-16-224": ("ViT-B-16-SigLIP", "webli"),
    "siglip-so400m-14-384": ("ViT-SO400M-14-SigLIP-384", "webli"),
    "siglip2-b-16-256": ("ViT-B-16-SigLIP2-256", "webli"),
    "xlm-roberta-base-ViT-B-32": ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
}
FIELDS = ("mean", "std", "interpolation", "resize_mode")


def versions() -> dict[str, str]:
    names = ("open_clip_torch", "transformers", "torchvision", "pillow")
    return {name: importlib.metadata.version(name) for name in names}


def constants(row: str) -> dict:
    """Preprocessing of a row, as open_clip publishes it."""
    config = get_pretrained_cfg(*PRETRAINED[row])
    return {name: config[name] for name in FIELDS}


def _transform(size, mean=(0.0,) * 3, std=(1.0,) * 3, *, interpolation, resize_mode):
    return image_transform(
        size,
        is_train=False,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation,
        resize_mode=resize_mode,
    )


def open_clip(image: np.ndarray, size: int, resize: str, interpolation: str) -> np.ndarray:
    """Pixels u8 that open_clip's evaluation transform gives before it divides by 255."""
    transform = _transform(size, interpolation=interpolation, resize_mode=resize)
    transform.transforms = transform.transforms[:-2]
    return np.asarray(transform(Image.fromarray(image)))


def open_clip_floats(row: str, image: np.ndarray, size: int) -> np.ndarray:
    """What open_clip feeds a row's tower, [height, width, 3]."""
    transform = _transform(size, **constants(row))
    return transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)


def _pixels(processor, image):
    options = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
    found = processor(Image.fromarray(image), data_format="channels_last", **options)
    return np.asarray(found["pixel_values"][0])


def transformers_clip(image: np.ndarray, size: int) -> np.ndarray:
    square = {"height": size, "width": size}
    return _pixels(CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square), image)


def transformers_siglip(image: np.ndarray, size: int) -> np.ndarray:
    square = {"height": size, "width": size}
    return _pixels(SiglipImageProcessor(size=square, resample=3), image)


def _align() -> EfficientNetImageProcessor:
    """As kakaobrain/align-base was published."""
    return EfficientNetImageProcessor(
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
    )


def transformers_align(image: np.ndarray) -> np.ndarray:
    return _pixels(_align(), image)


def transformers_align_floats(image: np.ndarray) -> np.ndarray:
    found = _align()(
        Image.fromarray(image), input_data_format="channels_last", data_format="channels_last"
    )
    return np.asarray(found["pixel_values"][0])
