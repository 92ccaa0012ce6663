"""The format `clipjax`: this package's own checkpoints, read leaf by leaf and written so."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.checkpoint import (
    DamagedCheckpointError,
    LeafRecord,
    Manifest,
    StreamedLeaf,
    attach_tokenizer,
    choose_step,
    load_tokenizer,
    make_contract,
    naming_older_steps,
    spec_in,
    verify_files,
    without_tokenizer,
    write_step,
)
from clipjax.config import to_plain
from clipjax.interop.files.orbax_state import StateReader
from clipjax.interop.shapes import check_spec, stacked_shapes
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.interop.weights import NO_HINTS, Adapter, Hints, Weights
from clipjax.models.layers_layout import block_names
from clipjax.models.lora import LORA, check_factors, factor_names, merged_kernel

STEP = 0
_STATISTICS = "batch_stats/"


def recognises(path: Path, hints: Hints = NO_HINTS) -> bool:
    """Whether a path is a workdir, its checkpoints folder, or one step's folder."""
    del hints
    try:
        choose_step(path)
    except ValueError:
        return False
    return True


def read(path: Path, hints: Hints) -> Weights:
    """Reads the parameters of a checkpoint, the averaged ones where it has them.

    Raises:
        WeightFileError: the checkpoint is damaged.
        ValueError: a hint contradicts it.
    """
    try:
        choice = choose_step(path)
        step_dir = choice.step_dir
        with naming_older_steps(step_dir):
            manifest = choice.manifest
            verify_files(step_dir, manifest.files)
        trusted: dict[str, Any] = {"plugins": hints.plugins, "tokenizer": hints.tokenizer}
        spec = spec_in(step_dir, manifest.contract, **trusted)
        if hints.tokenizer is not None:
            load_tokenizer(step_dir, **trusted)  # the file has to be the one it was trained with
    except (DamagedCheckpointError, KeyError, TypeError) as error:
        raise WeightFileError(f"{path} is a damaged checkpoint: {error}") from error
    check_spec(spec, where=str(step_dir), plugins=hints.plugins)
    check_hints(hints, step_dir, spec["name"])
    files: dict[str, Path] = {}
    file = spec["tokenizer"].get("model")
    if file is not None:
        files = {Path(file).name: Path(file)}
        spec = {**spec, "tokenizer": {**spec["tokenizer"], "model": Path(file).name}}
    leaves = _unstacked(step_dir, manifest.of_model(hints.which))
    try:
        adapter = _adapter(step_dir, manifest, hints.which, leaves)
    except (DamagedCheckpointError, ValueError) as error:
        raise WeightFileError(f"{step_dir} is a damaged checkpoint: {error}") from error
    if adapter is not None:
        leaves |= added(adapter.kernels, adapter.factors, adapter.alpha / adapter.rank)
    root = manifest.root_of(hints.which)
    averaged = {"params": "", "ema_params": ", the averaged parameters"}.get(root, f", {root}")
    notes = [f"step {manifest.step} of {step_dir.parent}{averaged}"]
    notes += [choice.warning()] if choice.passed_over else []
    source = f"clipjax {step_dir}"
    evals = {
        name: {"templates": fields["templates"]}
        for name, fields in manifest.config.get("evals", {}).items()
        if fields.get("templates")
    }
    told: dict[str, Any] = {"notes": tuple(notes), "evals": evals, "adapter": adapter}
    return Weights(spec, leaves, files, source, plugins=hints.plugins, **told)


def check_hints(hints: Hints, where: Path, name: str) -> None:
    """Refuses what is said of a checkpoint's model, `name`: it says all itself.

    Raises:
        ValueError: names the hints that are to be left out.
    """
    if hints.model not in (None, name) or hints.activation is not None:
        raise ValueError(
            f"{where} says itself that it is {name!r} and all about it; leave model= "
            "and activation= out"
        )
    if told := [name for name in hints.of_names() if name != "which="]:
        raise ValueError(
            f"{where} is a checkpoint of clipjax, whose names are its own; leave "
            f"{', '.join(told)} out"
        )


def write(path: Path, weights: Weights) -> None:
    """Writes `<path>/checkpoints/0`, which all of clipjax takes like a training's.

    Raises:
        ValueError: the tokenizer's file does not fit the spec, or a leaf is not finite.
    """
    spec = to_plain(weights.spec)
    check_spec(spec, where="the spec", plugins=weights.plugins)
    contract, attachments = _contract(spec, weights)
    metadata = {
        "config": {
            "model": contract["model"],
            "converted_from": weights.source,
            **({"evals": weights.evals} if weights.evals else {}),
        },
        "contract": contract,
        "dataset_fingerprint": "",
        "global_batch_size": 0,
        "seed": 0,
    }
    shapes = stacked_shapes(spec, weights.plugins)
    leaves = (_streamed(name, shape, weights) for name, shape in shapes.items())
    write_step(path / "checkpoints" / str(STEP), STEP, leaves, metadata, attachments)


def _contract(spec: dict[str, Any], weights: Weights) -> tuple[dict[str, Any], dict[str, bytes]]:
    options, tokenizer = weights.tokenizer()
    if tokenizer is None:
        return without_tokenizer(make_contract(spec, {}, plugins=weights.plugins)), {}
    spec = {**spec, "tokenizer": options}
    return attach_tokenizer(make_contract(spec, tokenizer.contract(), plugins=weights.plugins))


def _streamed(name: str, shape: tuple[int, ...], weights: Weights) -> StreamedLeaf:
    """A leaf as training lays it out; a stack is written a block of the transformer at a time."""
    plain = name.removeprefix("params/")
    in_state = f"model_state/{name}" if plain.startswith(_STATISTICS) else name
    blocks = block_names(plain, shape)

    def read_blocks() -> Iterator[np.ndarray]:
        for each in blocks or [plain]:
            value = weights.leaves[each].read()
            yield value[None] if blocks else value

    return StreamedLeaf(in_state, shape, len(blocks) or 1, read_blocks)


def added(
    kernels: Mapping[str, LazyTensor], factors: Mapping[str, LazyTensor], scale: float
) -> dict[str, LazyTensor]:
    """Kernels with their differences of low rank, each computed when it is read.

    Args:
        kernels: by our unrolled names, those of all factors among them.
        factors: `KERNEL/a` and `KERNEL/b`.
        scale: alpha / rank.
    """

    def with_difference(name: str) -> LazyTensor:
        def read() -> np.ndarray:
            a, b = factors[f"{name}/a"].read(), factors[f"{name}/b"].read()
            return merged_kernel(name, kernels[name].read(), a, b, scale)

        return LazyTensor(kernels[name].shape, np.dtype(np.float32), read)

    return {name: with_difference(name) for name in factor_names(factors)}


def _adapter(
    step_dir: Path, manifest: Manifest, which: str | None, leaves: Mapping[str, LazyTensor]
) -> Adapter | None:
    """The differences of low rank in a checkpoint, if there are some."""
    found = _unstacked(step_dir, manifest.of_model(which, factors=True))
    if not found:
        return None
    factors = {name.removeprefix(f"{LORA}/"): tensor for name, tensor in found.items()}
    rank, alpha = manifest.lora
    of_factors, of_leaves = (
        {name: x.shape for name, x in tree.items()} for tree in (factors, leaves)
    )
    check_factors(of_factors, of_leaves, rank)
    kernels = {name: leaves[name] for name in factor_names(factors)}
    base = str((manifest.config.get("init") or {}).get("checkpoint") or "")
    return Adapter(rank, alpha, factors, kernels, base)


def _unstacked(step_dir: Path, records: Mapping[str, LeafRecord]) -> dict[str, LazyTensor]:
    """Leaves by their unrolled names."""
    reader = StateReader(step_dir / "state")
    leaves: dict[str, LazyTensor] = {}
    for name, record in records.items():
        plain = name.removeprefix("params/")
        whole, blocks = reader.tensor(record.name, record.shape), block_names(plain, record.shape)
        leaves |= {name: whole.row(i) for i, name in enumerate(blocks)} or {plain: whole}
    return leaves
