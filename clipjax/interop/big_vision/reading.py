"""Reading a file of big_vision's kind."""

from pathlib import Path

from absl import logging

from clipjax.interop.big_vision.names import leaves, plain_names
from clipjax.interop.big_vision.specs import has_flat_attention, is_big_vision, spec_of
from clipjax.interop.files import file_kind
from clipjax.interop.source import read_source
from clipjax.interop.weights import NO_HINTS, Hints, Weights, convert


def recognises_big_vision(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a file holds two towers in big_vision's names."""
    if not path.is_file() or file_kind(path) != "npz":
        return False
    try:
        return is_big_vision(plain_names(read_source(path, hints).tensors)[0])
    except ValueError:
        return False


def read_big_vision(path: Path, hints: Hints) -> Weights:
    """Reads SigLIP, SigLIP 2, CLIPA or OpenVision from an `.npz`, scanned or not.

    The optimizer's leaves, if there are any, are left.

    Raises:
        WeightFileError: the file is damaged or holds something else.
        ValueError: the file cannot say which model it is, and no hint does.
    """
    source = read_source(path, hints)
    parameters, ignored = plain_names(source.tensors)
    spec = spec_of(parameters, hints, where=str(path))
    spec["name"] = spec["name"] or path.stem
    table = leaves(spec, flat_attention=has_flat_attention(parameters))
    if ignored:
        logging.info("%s: %d leaves of the optimizer and the clock left", path, len(ignored))
    return Weights(
        spec=spec,
        leaves=convert(table, parameters, spec, where=str(path)),
        source=f"big_vision {path}",
        ignored=(*ignored, *source.ignored),
        notes=source.notes,
    )
