"""The format `adapter`: what LoRA has learned, alone; the rest is that of a checkpoint it names.

A folder of two files. `adapter.safetensors` holds the factors, and whole each leaf that is not the
base's: trained as it is, or resized. `adapter.json` says their scale, the model's spec, and the
base: its path, and the SHA-256 of its manifest, which vouches for all of it.

Reference: arXiv:2106.09685.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from clipjax.checkpoint import (
    CHECKPOINTS,
    DamagedCheckpointError,
    choose_step,
    committed_steps,
    manifest_digest,
)
from clipjax.config import to_plain
from clipjax.files import sha256_of_file
from clipjax.interop import clipjax_checkpoint
from clipjax.interop.files import open_tensors, save_safetensors
from clipjax.interop.section import Section, read_json, write_json
from clipjax.interop.shapes import check_spec, expected_shapes
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.interop.weights import NO_HINTS, Adapter, Hints, Weights
from clipjax.models.lora import LORA, check_factors, factor_names

FILE, TENSORS = "adapter.json", "adapter.safetensors"
_VERSION = "clipjax adapter 1"
_FACTORS = f"{LORA}/"


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder of this format."""
    return (path / FILE).is_file()


def recognises(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a path is an adapter, or a checkpoint that one is to be added to."""
    if is_adapter(path):
        return True
    given = hints.lora is not None and is_adapter(Path(hints.lora))
    return given and clipjax_checkpoint.recognises(path)


def read(path: Path, hints: Hints) -> Weights:
    """Reads an adapter and the checkpoint that it is of.

    Args:
        path: of the adapter; or of its base, where `hints.lora` is the adapter.
        hints: nothing but plug-ins is to be said besides.

    Raises:
        WeightFileError: one of both is damaged, or the base is not there, or another one.
        ValueError: a hint contradicts them.
    """
    folder, given = (path, None) if is_adapter(path) else (Path(str(hints.lora)), path)
    if given is None and hints.lora is not None:
        raise ValueError(f"{path} is an adapter: leave lora={str(hints.lora)!r} out")
    if told := [name for name in hints.of_names() if name not in ("lora=", "which=")]:
        raise ValueError(f"{folder} says itself how it is read; leave {', '.join(told)} out")
    about = Section(read_json(folder / FILE), str(folder / FILE))
    about.must_be("format", _VERSION)
    rank, alpha = about.integer("rank"), about.number("alpha")
    if sha256_of_file(folder / TENSORS) != about.get("sha256"):
        raise WeightFileError(f"{folder / TENSORS} does not match its SHA-256 in {FILE}: damaged")
    step_dir = _base_step(Section(about.get("base"), f"{folder / FILE}: base"), folder, given)
    of_base = Hints(plugins=hints.plugins, which=hints.which)
    base = clipjax_checkpoint.read(step_dir, of_base)
    spec, evals = about.get("spec"), about.get("evals", {})
    about.close()
    if not isinstance(spec, Mapping) or not isinstance(evals, Mapping):
        raise WeightFileError(f"{folder / FILE}: spec and evals are to be objects")
    check_spec(spec, where=str(folder / FILE), plugins=hints.plugins)
    spec = {**spec, "tokenizer": base.spec["tokenizer"]}
    tensors = open_tensors(folder / TENSORS).tensors
    factors = {n.removeprefix(_FACTORS): t for n, t in tensors.items() if n.startswith(_FACTORS)}
    whole = {name: t for name, t in tensors.items() if not name.startswith(_FACTORS)}
    leaves = {**base.leaves, **whole}
    kernels = {name: leaf.shape for name, leaf in base.leaves.items()}
    try:
        check_factors({name: x.shape for name, x in factors.items()}, kernels, rank)
    except ValueError as error:
        raise WeightFileError(f"{folder / TENSORS}: {error}") from error
    wanted = expected_shapes(spec, hints.plugins)
    for name, tensor in whole.items():
        if wanted.get(name) != tensor.shape or tensor.dtype != np.float32:
            raise WeightFileError(
                f"{folder / TENSORS} holds {name} as {tensor.shape} of {tensor.dtype}, and the "
                f"model of {FILE} has {wanted.get(name, 'none')} of float32"
            )
    of_kernels = {name: base.leaves[name] for name in factor_names(factors)}
    leaves |= clipjax_checkpoint.added(of_kernels, factors, alpha / rank)
    return Weights(
        spec,
        leaves,
        base.tokenizer_files,
        f"adapter {folder} of {step_dir}",
        plugins=hints.plugins,
        notes=(f"LoRA of rank {rank}, alpha {alpha:g}, added to {step_dir}", *base.notes),
        evals=evals,
        adapter=Adapter(rank, alpha, factors, of_kernels, str(step_dir)),
    )


def _base_step(about: Section, folder: Path, given: Path | None) -> Path:
    """The step of the base, whose manifest is the one that the adapter was trained on."""
    path, wanted = Path(str(about.get("path"))) if given is None else given, about.get("sha256")
    about.ignore(["path"])
    about.close()
    mend = f"give the checkpoint itself, and the adapter as lora={str(folder)!r}"
    try:
        steps = list(_steps_of(path))
    except (ValueError, OSError) as error:
        raise WeightFileError(f"{folder} is an adapter of {path}: {error}; {mend}") from error
    for step_dir in steps:
        if manifest_digest(step_dir) == wanted:
            return step_dir
    raise WeightFileError(
        f"{folder} is an adapter of the checkpoint whose manifest has SHA-256 {wanted!s:.64}, and "
        f"no step of {path} does; {mend}"
    )


def _steps_of(path: Path) -> Iterator[Path]:
    """The step that a path means, and then the others of its run, the newest first."""
    chosen = choose_step(path).step_dir
    yield chosen
    for directory in (path, path / CHECKPOINTS):
        for step in reversed(committed_steps(directory)):
            if directory / str(step) != chosen:
                yield directory / str(step)


def write(path: Path, weights: Weights) -> None:
    """Writes the adapter of a run, or of an adapter.

    Raises:
        ValueError: there is none, or its base is not there any more, or has another tokenizer.
    """
    adapter = weights.adapter
    if adapter is None:
        raise ValueError(
            f"{weights.source} holds no factors of low rank; an adapter is written of a run that "
            "has trained some"
        )
    step_dir, base = _base_of(adapter, weights)
    tensors: dict[str, LazyTensor] = {}
    for name, leaf in weights.leaves.items():
        if name not in adapter.kernels:
            if not _equal(leaf, base.leaves.get(name)):
                tensors[name] = leaf.astype(np.float32)
        elif adapter.factors[f"{name}/b"].read().any():  # else the difference is zero
            tensors |= {f"{_FACTORS}{name}/{x}": adapter.factors[f"{name}/{x}"] for x in "ab"}
    spec = to_plain(weights.spec)
    path.mkdir(parents=True)
    save_safetensors(path / TENSORS, tensors)
    about = {
        "format": _VERSION,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "base": {"path": str(step_dir), "sha256": manifest_digest(step_dir)},
        "sha256": sha256_of_file(path / TENSORS),
        "spec": spec,
        "evals": to_plain(weights.evals),
    }
    write_json(path / FILE, about)


def _base_of(adapter: Adapter, weights: Weights) -> tuple[Path, Weights]:
    """The checkpoint that a run started from: that whose kernels are the run's to the bit."""
    mend = "put it back, or convert the run to another format, which is whole"
    try:
        steps = list(_steps_of(Path(adapter.base).absolute()))
    except (ValueError, OSError) as error:
        raise ValueError(f"the run started from {adapter.base}: {error}; {mend}") from error
    for step_dir in steps:
        try:
            base = clipjax_checkpoint.read(step_dir, Hints(plugins=weights.plugins))
        except (WeightFileError, DamagedCheckpointError):
            continue
        if all(_equal(kernel, base.leaves.get(n)) for n, kernel in adapter.kernels.items()):
            _check_tokenizer(weights, base, step_dir)
            return step_dir, base
    raise ValueError(
        f"the run started from a step of {adapter.base} that is there no more: none of "
        f"{', '.join(step_dir.name for step_dir in steps)} has its kernels; {mend}"
    )


def _check_tokenizer(weights: Weights, base: Weights, step_dir: Path) -> None:
    contracts = [x.contract() if x else None for _, x in (weights.tokenizer(), base.tokenizer())]
    if contracts[0] != contracts[1]:
        raise ValueError(
            f"the run has another tokenizer than its base {step_dir}, which an adapter does not "
            "hold; convert it to another format, which is whole"
        )


def _equal(leaf: LazyTensor, other: LazyTensor | None) -> bool:
    return (
        other is not None
        and leaf.shape == other.shape
        and bool(np.array_equal(leaf.read(), other.read()))
    )
