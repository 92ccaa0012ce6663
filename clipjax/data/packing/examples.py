"""How an example is packed: its picture's bytes, the files of a tar shard, or a record."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipjax.data.captions import flatten
from clipjax.data.images.formats import format_of
from clipjax.data.images.preprocess import as_pil, decode_image, to_rgb
from clipjax.data.packed.records import pack_record
from clipjax.data.source import Example, SampleError
from clipjax.data.tar.reader import MAX_MEMBER_BYTES, MAX_MEMBERS

FORMATS = {"tar": ".tar", "arrayrecord": ".array_record"}
MAX_TAR_EXAMPLES = MAX_MEMBERS // 4  # picture, .json, .txt and .cls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How examples are packed.

    Attributes:
        format: `tar` (webdataset's layout) or `arrayrecord`.
        shard_size: examples a shard, unusable ones included; of a tar shard, up to 250,000.
        resize: pixels of the shorter side that larger pictures are brought to; None leaves
            encoded pictures as they are, byte for byte.
        quality: the quality of the JPEGs that resized pictures become.
        max_bad_fraction: the fraction of all examples that may be unusable before the job fails.
    """

    format: str = "tar"
    shard_size: int = 10_000
    resize: int | None = None
    quality: int = 95
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}: allowed are {', '.join(FORMATS)}")
        largest = MAX_TAR_EXAMPLES if self.format == "tar" else 10**9
        for name, low, high in (
            ("shard_size", 1, largest),
            ("resize", 1, 10**5),
            ("quality", 1, 100),
            ("max_bad_fraction", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}: allowed are {low}..{high}")


def encode(image: bytes | np.ndarray | Image.Image, how: Packing) -> tuple[str, bytes]:
    """Encodes a picture for a shard; gives its extension and its bytes."""
    if isinstance(image, bytes):
        if how.resize is None:
            return _extension_of(image), image
        picture = decode_image(image)
        if min(picture.size) <= how.resize:
            return _extension_of(image), image
    else:
        picture = as_pil(image)
    file = io.BytesIO()
    if how.resize is None or min(picture.size) <= how.resize:
        picture.save(file, "PNG", compress_level=6)  # pixels stay what they are
        return "png", file.getvalue()
    factor = how.resize / min(picture.size)
    width, height = (max(how.resize, round(side * factor)) for side in picture.size)
    small = to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC)
    small.save(file, "JPEG", quality=how.quality, subsampling="4:2:0")
    return "jpg", file.getvalue()


def _extension_of(data: bytes) -> str:
    form = format_of(data)
    if form is None:
        raise SampleError("image_format", f"a picture begins with {data[:8]!r}")
    return form.extensions[0]


def write_tar(path: Path, examples: Iterable[list[tuple[str, bytes]]]) -> int:
    """Writes the files of examples, without times and owners; gives the number of examples."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for members in examples:
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            count += 1
    return count


def members_of(
    index: int, example: Example, extension: str, image: bytes
) -> list[tuple[str, bytes]]:
    """Gives names and contents of the files that hold an example in a tar shard.

    An example that has a label and no text has no `.txt` and no `.json`: they would be read in
    place of the label. Groups are fields of `.json`.

    Raises:
        SampleError: `text_empty` if it has neither, `too_large` if a shard cannot hold it.
        ValueError: if a group has the name of another field, or there is no `.json` to hold it.
    """
    text, members = example["text"], {extension: image}
    groups = dict(example.get("groups") or {})
    if taken := {"key", "caption", "captions", "label"} & groups.keys():
        raise ValueError(
            f"a shard's .json has a {min(taken)!r} of its own: rename that group_field"
        )
    if groups and not any(flatten(text)):
        raise ValueError(
            f"{example['key']} has groups and no text, which a shard does not hold together: give "
            "the source its ?class_names="
        )
    if any(flatten(text)):
        about: dict[str, Any] = {**groups, "key": example["key"]}
        if not isinstance(text, str):
            about["captions"] = text if isinstance(text, dict) else list(text)
        if "label" in example:
            about["label"] = int(example["label"])
        members["json"] = json.dumps(about, ensure_ascii=False, sort_keys=True).encode("utf-8")
        if isinstance(text, str):
            members["txt"] = text.encode("utf-8")
    elif "label" not in example:
        raise SampleError("text_empty", "the caption is empty", example["key"])
    if "label" in example:
        members["cls"] = str(int(example["label"])).encode()
    for suffix, content in members.items():
        if len(content) > MAX_MEMBER_BYTES:
            raise SampleError(
                "too_large",
                f"its {suffix} has {len(content)} bytes; a tar shard is read with files of up to "
                f"{MAX_MEMBER_BYTES}",
                example["key"],
            )
    return [(f"{index:09d}.{suffix}", content) for suffix, content in members.items()]


def record_of(example: Example, image: bytes) -> bytes:
    """Gives the packed record of an example.

    Raises:
        SampleError: `text_empty` if it has neither text nor label.
        ValueError: if records cannot hold it: captions by language, a label without text, groups.
    """
    text = example["text"]
    if example.get("groups"):
        raise ValueError(
            "packed records hold no groups: pack it by `clipjax data pack --format tar`, or leave "
            "group_field out of its SPEC"
        )
    if isinstance(text, dict):
        raise ValueError(
            "packed records hold no languages: pack it by `clipjax data pack --format tar`, "
            "or choose one language in its SPEC"
        )
    if not any(flatten(text)):
        if "label" not in example:
            raise SampleError("text_empty", "the caption is empty", example["key"])
        raise ValueError(
            f"{example['key']} has a label and no text, which packed records do not hold: pack "
            "this source by `clipjax data pack --format tar`, or give its ?class_names="
        )
    return pack_record(
        key=example["key"],
        text=(text,) if isinstance(text, str) else tuple(text),
        blobs={"image": image},
        label=example.get("label"),
    )
