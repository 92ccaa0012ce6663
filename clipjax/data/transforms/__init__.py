"""Transforms of training examples: frozen dataclasses, `transform(example, rng) -> example`.

All randomness comes from `rng`, which the loader keys by (seed, position in the stream): an
example is augmented alike on whichever host, in whichever worker thread it is made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.building import build
from clipjax.data.source import Example
from clipjax.data.transforms.caption_parts import ChooseChunk, DropPrompt, MaskWords
from clipjax.data.transforms.captions import (
    CaptionTemplate,
    ChooseCaption,
    DropWord,
    FilterCaption,
)
from clipjax.data.transforms.color import (
    ColorJitter,
    Cutout,
    RandomBackground,
    RandomBlur,
    RandomGrayscale,
)
from clipjax.data.transforms.geometry import RandomFlip, RandomResizedCrop, ResizeAndCrop, Warp
from clipjax.data.transforms.layers import ComposeLayers
from clipjax.data.transforms.rand_augment import RandAugment

Transform = Callable[[Example, np.random.Generator], Example]

TRANSFORMS = {
    "caption_template": CaptionTemplate,
    "choose_caption": ChooseCaption,
    "choose_chunk": ChooseChunk,
    "color_jitter": ColorJitter,
    "compose_layers": ComposeLayers,
    "cutout": Cutout,
    "drop_prompt": DropPrompt,
    "drop_word": DropWord,
    "filter_caption": FilterCaption,
    "mask_words": MaskWords,
    "rand_augment": RandAugment,
    "random_background": RandomBackground,
    "random_blur": RandomBlur,
    "random_flip": RandomFlip,
    "random_grayscale": RandomGrayscale,
    "random_resized_crop": RandomResizedCrop,
    "resize_and_crop": ResizeAndCrop,
    "warp": Warp,
}


def make_transforms(
    specs: Sequence[Mapping[str, Any]],
    *,
    image_size: int,
    path: str = "data.transforms",
    plugins: Sequence[str] = (),
) -> tuple[Transform, ...]:
    """Builds the transforms of a config, in order.

    Args:
        specs: each with a `name` of `TRANSFORMS` (or `package.module:Class`) and its fields.
        image_size: pixels of a side, for the transforms that resize and are not given one.

    Raises:
        ValueError: for an unknown name or field, a value out of range, or what is no list.
    """
    specs = specs if isinstance(specs, str | Mapping) else tuple(specs)  # a generator gives once
    if isinstance(specs, str | Mapping) or not all(isinstance(s, Mapping) for s in specs):
        raise ValueError(
            f"{path} = {specs!r}: expected a tuple or list of dicts, e.g. "
            '({"name": "random_flip"},), with its comma'
        )
    return tuple(
        make_transform(spec, image_size=image_size, path=f"{path}[{number}]", plugins=plugins)
        for number, spec in enumerate(specs)
    )


def make_transform(
    spec: Mapping[str, Any], *, image_size: int, path: str, plugins: Sequence[str] = ()
) -> Transform:
    """Builds one transform; the arguments are those of `make_transforms`, but for one spec."""
    size = {} if "image_size" in spec else {"image_size": image_size}
    return build(spec, TRANSFORMS, path=path, plugins=plugins, **size)
