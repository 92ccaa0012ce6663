"""What the evaluations of this package have in common: what they are given, and its checks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.data.images.naflex import PatchPreprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.encoding.encode_fns import EncodeFn
from clipjax.ranges import Rule, Text, check_fields, whole


@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """An evaluation on the images and texts of a dataset.

    Attributes:
        source: the dataset.
        encode_image_fn: (params, uint8 images) -> `[batch, embed]`; see `make_encode_fns`.
        encode_text_fn: (params, int32 tokens) -> `[batch, embed]`.
        preprocess: (bytes | image) -> uint8 `[size, size, 3]`.
        tokenizer: texts -> int32 `[batch, length]`.
        mesh: the devices; the batch lies over its batch axes.
        batch_size: images, or texts, over all devices; rounded up to the batch axes' size.
        max_bad: images that may fail before the evaluation is an error, by their pixels or a row
            that is unusable.
        name: for messages and for the prefix of metrics.
    """

    source: Any
    encode_image_fn: EncodeFn
    encode_text_fn: EncodeFn
    preprocess: Preprocess | PatchPreprocess
    tokenizer: Callable[[list[str]], np.ndarray]
    mesh: Mesh
    if TYPE_CHECKING:  # they stand behind each one's own fields: so messages list them
        batch_size: int
        max_bad: int
    name: str = "evaluation"
    keeps_examples = False  # whether `run` notes, in `tables`, rows to look at; set, not given

    ranges: ClassVar[Mapping[str, Rule]] = {
        "batch_size": whole(),
        "max_bad": whole(0),
        "name": Text(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self.ranges)
        if len(self.source) < 1:
            raise ValueError(f"{self.name}: the source is empty; there is nothing to evaluate")


def check_classes(source: Any, where: str, *, max_bad: int, may_be_empty: bool = False) -> None:
    """Refuses a source with classes that is not the set that it seems to be.

    Args:
        max_bad: pictures that may stand in the source twice.
        may_be_empty: whether classes may have no pictures.

    Raises:
        ValueError: classes without pictures, or more pictures that are there twice.
    """
    empty = getattr(source, "empty_classes", None)
    if empty and not may_be_empty:
        raise ValueError(
            f"{where}: {len(empty)} class folders hold no picture, e.g. {empty[0]}: among fewer "
            "names more answers are right. Fetch the pictures, or remove what is no class; "
            "classes='present' evaluates without them"
        )
    count, told = getattr(source, "repeated", None) or (0, "")
    if count > max_bad:
        raise ValueError(
            f"{where}: {count} rows name the picture of another row, {max_bad} allowed (max_bad): "
            f"{told}. Each picture counts once: keep one row of each; several classes of a picture "
            "are a list in a .jsonl"
        )
    if count:
        logging.warning("%s: %d rows name the picture of another row: %s", where, count, told)
