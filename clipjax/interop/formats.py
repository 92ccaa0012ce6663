"""The formats that weights come in and go out in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from clipjax.building import made_by
from clipjax.interop import adapter, big_vision, clipjax_checkpoint, hugging_face, stablehlo
from clipjax.interop.open_clip import format as open_clip
from clipjax.interop.weights import Hints, Weights


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        recognises: whether a file or directory is of this format, by what a person says of its
            names; cheap, raises nothing.
        read: reads it; nothing but names, shapes and small files is read before a tensor is asked
            for. Raises WeightFileError or ValueError.
        write: writes to a path that does not exist yet; None for a format that is read only.
        weight_files: names of the files of weights in a folder; the first that is there is read.
    """

    recognises: Callable[[Path, Hints], bool]
    read: Callable[[Path, Hints], Weights]
    write: Callable[[Path, Weights], None] | None = None
    weight_files: tuple[str, ...] = ()


# The first that recognises a path reads it.
FORMATS: dict[str, Format] = {
    "adapter": Format(adapter.recognises, adapter.read, adapter.write),
    "clipjax": Format(
        clipjax_checkpoint.recognises, clipjax_checkpoint.read, clipjax_checkpoint.write
    ),
    "hf": Format(
        hugging_face.recognises,
        hugging_face.read,
        hugging_face.write,
        hugging_face.WEIGHT_FILES,
    ),
    "big_vision": Format(big_vision.recognises_big_vision, big_vision.read_big_vision),
    "open_clip": Format(
        open_clip.recognises, open_clip.read, open_clip.write, open_clip.WEIGHT_FILES
    ),
    "stablehlo": Format(stablehlo.recognises, stablehlo.read, stablehlo.write),
}


def named_format(name: str) -> Format:
    """The format that a person names: of FORMATS, or what `module:Name` of their own gives.

    Raises:
        ValueError: there is none of that name.
    """
    if ":" not in name and name in FORMATS:
        return FORMATS[name]
    return made_by(name, Format, path="", key="format", table=FORMATS)


# Whole models first; an adapter is a part of one.
WRITTEN = tuple(
    sorted((n for n, entry in FORMATS.items() if entry.write is not None), key="adapter".__eq__)
)
