"""From any format to any other: recognise, read, check, write beside the target, rename."""

import dataclasses
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

from clipjax.checkpoint import MANIFEST, choose_step, naming_older_steps, needs_file
from clipjax.data.storage.files import local_path
from clipjax.files import sha256_of_file
from clipjax.interop import adapter
from clipjax.interop.files import file_kind
from clipjax.interop.files.atomic import check_new, new_path
from clipjax.interop.formats import WRITTEN, named_format
from clipjax.interop.reading import read_weights
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import Hints, Weights

FREE_SPACE_FACTOR = 1.05
OF_OTHERS = ("hf", "open_clip")  # formats of packages that have some models and not others


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion found and did.

    Attributes:
        source_format: of FORMATS.
        model: name in the spec.
        parameters: count, running statistics excluded.
        statistics: count of running statistics.
        ignored: names of tensors that are no parameters, or that a person left out.
        notes: what was done to read the source, one line each: the step, the names.
        sha256: of the files of weights that were read, by name.
        target: what was written.
        target_bytes: size of it.
        lacks_tokenizer: the target takes no texts: the tokenizer's file was not at hand.
    """

    source_format: str
    model: str
    parameters: int
    statistics: int
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: dict[str, str]
    target: Path
    target_bytes: int
    lacks_tokenizer: bool


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    target_format: str,
    *,
    hints: Hints | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Converts weights; the target appears when it is whole, or not at all.

    Args:
        source: a file or directory of any of FORMATS.
        target: a path that does not exist.
        target_format: one of WRITTEN, or `module:Name` of one's own.
        hints: what the files cannot say.
        tokenizer: file of the tokenizer's vocabulary, where the source comes without it.

    Raises:
        WeightFileError: the source is no weights, is damaged, or is not what it says.
        ValueError: a bad argument, or a hint is needed or wrong.
        OSError: reading or writing failed.
    """
    target = local_path(target)
    known = target_format in WRITTEN or ":" in target_format
    write = named_format(target_format).write if known else None
    if write is None:
        raise ValueError(
            f"target_format={target_format!r}: formats to write are {', '.join(WRITTEN)}"
        )
    check_new(target)
    hints = dataclasses.replace(hints or Hints(), tokenizer=tokenizer)
    found, weights = read_weights(source, hints)
    _check_space(weights, target)
    path = local_path(source)
    step_dir = choose_step(path).step_dir if found == "clipjax" else path
    digests = weight_digests(step_dir, found)
    if hints.lora is not None:
        digests |= weight_digests(Path(hints.lora), "lora")
    if hints.text_from is not None:
        other = weight_digests(Path(hints.text_from), found)
        digests |= {f"{name} of the text tower": digest for name, digest in other.items()}
    summary = ", ".join(f"{name} (SHA-256 {digest})" for name, digest in digests.items())
    weights = dataclasses.replace(weights, source=f"{found}: {summary}")
    # Leaf by leaf: a run that is still going may delete the step meanwhile.
    named = naming_older_steps(step_dir) if found == "clipjax" else nullcontext()
    with named, new_path(target) as temporary:
        try:
            write(temporary, weights)
        except ValueError as error:
            if target_format not in OF_OTHERS or isinstance(error, WeightFileError):
                raise
            raise ValueError(
                f"{error}; target_format='stablehlo' takes any model, as a program of JAX"
            ) from error
    sizes = {name: math.prod(tensor.shape) for name, tensor in weights.leaves.items()}
    statistics = sum(n for name, n in sizes.items() if name.startswith("batch_stats/"))
    return Conversion(
        source_format=found,
        model=weights.spec["name"],
        parameters=sum(sizes.values()) - statistics,
        statistics=statistics,
        ignored=weights.ignored,
        notes=weights.notes,
        sha256=digests,
        target=target,
        target_bytes=sum(x.stat().st_size for x in (target, *target.rglob("*")) if x.is_file()),
        lacks_tokenizer=needs_file(weights.spec["tokenizer"]),
    )


def _check_space(weights: Weights, target: Path) -> None:
    needed = int(FREE_SPACE_FACTOR * sum(tensor.nbytes for tensor in weights.leaves.values()))
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise OSError(
            f"no space for {target}: it needs {needed / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free"
        )


def weight_digests(source: Path, kind: str) -> dict[str, str]:
    """SHA-256 of the source: of each file of weights, or of the one that vouches for all."""
    paths = [source]
    if kind == "clipjax":
        paths = [source / MANIFEST]
    elif adapter.is_adapter(source):
        paths = [source / adapter.FILE]
    elif kind == "adapter":
        paths = [choose_step(source).step_dir / MANIFEST]
    elif source.is_dir():
        paths = [x for x in sorted(source.iterdir()) if x.is_file() and file_kind(x) is not None]
    return {path.name: sha256_of_file(path) for path in paths}
