"""Parameters for evaluation and fine-tuning: from a checkpoint alone, into any model that fits."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint import restore
from clipjax.checkpoint.choice import naming_older_steps
from clipjax.checkpoint.leaf_names import matching_leaves, rename_leaves
from clipjax.checkpoint.manifest import DamagedCheckpointError
from clipjax.layers.position_embeddings import resize_grid, resize_sequence
from clipjax.partitioning import place
from clipjax.trees import flatten_with_names, map_with_names, unflatten_names


def load_params(
    step_dir: str | os.PathLike[str], shardings: Any = None, *, ema: bool = True
) -> dict[str, Any]:
    """Loads the parameters of a checkpoint, and nothing else of it.

    Args:
        step_dir: as `clipjax.checkpoint.resolve_checkpoint` returns it.
        shardings: None (this process's first device), one sharding for all leaves, or a nested
            dict of them like the parameters.
        ema: take the averaged parameters, where the checkpoint has them.

    Returns:
        The parameters as a nested dict of jax.Arrays.

    Raises:
        DamagedCheckpointError: the checkpoint is not what was written.
        ValueError: it holds no parameters.
    """
    step_dir = Path(step_dir)
    manifest = manifests.read_manifest(step_dir)
    roots = {record.name.split("/")[0] for record in manifest.leaves}
    root = "ema_params" if ema and "ema_params" in roots else "params"
    if root not in roots:
        raise ValueError(f"{step_dir} holds no {root}; it holds {', '.join(sorted(roots))}")
    return _load_root(step_dir, manifest, root, shardings)


def load_model_state(step_dir: str | os.PathLike[str], shardings: Any = None) -> dict[str, Any]:
    """Loads the model's running statistics, such as those of batch norm; {} if it has none.

    Args:
        step_dir: as for `load_params`.
        shardings: as for `load_params`.

    Raises:
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    step_dir = Path(step_dir)
    manifest = manifests.read_manifest(step_dir)
    if not any(record.name.startswith("model_state/") for record in manifest.leaves):
        return {}
    return _load_root(step_dir, manifest, "model_state", shardings)


def load_variables(
    step_dir: str | os.PathLike[str], to_layout: Callable[[Any], Any] = lambda params: params
) -> dict[str, Any]:
    """Loads what a model computes with: its parameters, and its running statistics if it has any.

    Args:
        step_dir: as for `load_params`.
        to_layout: applied to the parameters, to stack or unstack their layers.

    Returns:
        The model's variables: `{"params": ...}`, and `batch_stats` for a model that has some.
    """
    return {"params": to_layout(load_params(step_dir)), **load_model_state(step_dir)}


def _load_root(
    step_dir: Path, manifest: manifests.Manifest, root: str, shardings: Any
) -> dict[str, Any]:
    with naming_older_steps(step_dir):
        return _read_root(step_dir, manifest, root, shardings)


def _read_root(
    step_dir: Path, manifest: manifests.Manifest, root: str, shardings: Any
) -> dict[str, Any]:
    records = [r for r in manifest.leaves if r.name.startswith(f"{root}/")]
    if any(r.sha256 is None for r in records):
        manifests.verify_files(step_dir, manifest.files)  # nothing else vouches for these leaves
    abstract = _abstract_tree(records, root, shardings)
    try:
        tree = restore.restore_tree(step_dir, abstract, partial=True)
    except Exception as error:
        manifests.verify_files(step_dir, manifest.files)  # names the damaged file, if one is
        ours = isinstance(error, OSError | RuntimeError) and not isinstance(error, RecursionError)
        if ours:  # of the disk, or of the device's memory
            raise
        text = " ".join(str(error).split())
        raise DamagedCheckpointError(
            f"{step_dir / restore.STATE} cannot be read as the manifest says: "
            f"{type(error).__name__}: {text:.300}"
        ) from error
    try:
        restore.verify_state(manifest, tree)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{step_dir}: {error}") from error
    return tree[root]


def _abstract_tree(records: list[manifests.LeafRecord], root: str, shardings: Any) -> Any:
    by_name = {}
    if isinstance(shardings, Mapping):
        by_name = {f"{root}/{name}": sharding for name, sharding in flatten_with_names(shardings)}
        if by_name.keys() != {r.name for r in records}:
            odd = sorted(by_name.keys() ^ {r.name for r in records})
            raise ValueError(f"shardings and checkpoint have other leaves: {', '.join(odd[:10])}")
    return unflatten_names(
        {
            r.name: jax.ShapeDtypeStruct(
                r.shape, jnp.dtype(r.dtype), sharding=by_name.get(r.name, shardings)
            )
            for r in records
        }
    )


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every leaf, by name; `resized` holds (shape before, shape now)."""

    loaded: tuple[str, ...]
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    initialised: tuple[str, ...]
    ignored: tuple[str, ...]

    def joined(self, other: "LoadReport") -> "LoadReport":
        """The report of two loads."""
        return LoadReport(
            self.loaded + other.loaded,
            {**self.resized, **other.resized},
            self.initialised + other.initialised,
            self.ignored + other.ignored,
        )

    def lines(self) -> list[str]:
        """Writes one line a leaf."""
        rows = [("loaded", name, "") for name in self.loaded]
        rows += [
            ("resized", n, f" {list(old)} -> {list(new)}") for n, (old, new) in self.resized.items()
        ]
        rows += [("initialised", name, "") for name in self.initialised]
        rows += [("ignored", name, "") for name in self.ignored]
        return [f"{what:<11} {name}{more}" for what, name, more in rows]


def load_pretrained(
    params: Any,
    loaded: Mapping[str, Any],
    *,
    rename: Iterable[tuple[str, str]] = (),
    drop: Iterable[str] = (),
    initialise: Iterable[str] = (),
    resize_position_embedding: bool = True,
) -> tuple[Any, LoadReport]:
    """Puts loaded parameters into those of a model.

    Args:
        params: the model's parameters: arrays, or `jax.ShapeDtypeStruct` if all are to be loaded.
            The result takes their tree, dtype and sharding.
        loaded: nested dict of arrays.
        rename: pairs (regular expression, replacement), applied in order to the loaded names.
        drop: regular expressions of loaded names (renamed) to leave out.
        initialise: regular expressions of the model's names that keep their initial value.
        resize_position_embedding: fit `position_embedding` leaves of another length: bicubic over
            the patch grid for images, linear for texts.

    Returns:
        The parameters and a report of every leaf.

    Raises:
        ValueError: a leaf of either side is left over, a shape does not fit, or a pattern matches
            nothing. The message says what to add to config.init.
    """
    names = dict(flatten_with_names(loaded))
    sources = rename_leaves(names, rename, where="config.init.rename")
    targets = dict(flatten_with_names(params))
    ignored = matching_leaves(drop, sources, where="config.init.drop")
    kept = matching_leaves(initialise, targets, where="config.init.initialise")
    sources = {name: value for name, value in sources.items() if name not in ignored}
    _check_leftovers(sources, targets, kept)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def fit(name: str, target: Any) -> Any:
        if name in kept:
            if isinstance(target, jax.ShapeDtypeStruct):
                raise ValueError(f"{name} is to keep its initial value, but only its shape is here")
            return target
        value = jnp.asarray(sources[name])
        if value.shape != target.shape and resize_position_embedding:
            fitted = _resize(name, value, target.shape)
            if fitted is not None:
                resized[name] = (value.shape, target.shape)
                value = fitted
        if value.shape != target.shape:
            raise ValueError(
                f"{name}: {list(value.shape)} in the checkpoint, {list(target.shape)} in the "
                "model; use the model of the checkpoint, or add the name to config.init.drop and "
                "config.init.initialise to train this leaf anew"
            )
        value = value.astype(target.dtype)
        return value if target.sharding is None else place(value, target.sharding)

    result = map_with_names(fit, params)
    report = LoadReport(
        loaded=tuple(n for n in targets if n not in kept and n not in resized),
        resized=resized,
        initialised=tuple(n for n in targets if n in kept),
        ignored=tuple(sorted(ignored)),
    )
    return result, report


def _check_leftovers(
    sources: Mapping[str, Any], targets: Mapping[str, Any], kept: set[str]
) -> None:
    unused = sorted(sources.keys() - (targets.keys() - kept))
    missing = sorted(targets.keys() - kept - sources.keys())
    lines = [f"  {n}: in the checkpoint only; add it to config.init.drop" for n in unused]
    lines += [f"  {n}: in the model only; add it to config.init.initialise" for n in missing]
    if lines:
        raise ValueError(
            "checkpoint and model do not have the same leaves (config.init.rename gives other "
            "names to those of the checkpoint):\n" + "\n".join(lines)
        )


def _resize(name: str, value: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    """Fits position embeddings [positions, width]; None for any other leaf."""
    parts = name.split("/")
    is_position = parts[-1] == "position_embedding" and value.ndim == len(shape) == 2
    if not is_position or value.shape[1] != shape[1]:
        return None
    if "text_encoder" in parts:
        return resize_sequence(value, shape[0])
    extra = _num_class_rows(name, value.shape[0])
    if extra != _num_class_rows(name, shape[0]):
        raise ValueError(
            f"{name}: {value.shape[0]} positions in the checkpoint, {shape[0]} in the model: one "
            "of them has a class token and the other has none; use the same pooling"
        )
    side = round((shape[0] - extra) ** 0.5)
    return resize_grid(value, (side, side), num_extra=extra)


def _num_class_rows(name: str, positions: int) -> int:
    """How many rows stand in front of a square grid: 0 or 1, which never fit both (save for 1)."""
    for extra in (0, 1):
        side = round((positions - extra) ** 0.5)
        if side and side * side == positions - extra:
            return extra
    raise ValueError(
        f"{name}: {positions} positions are no square grid, with or without a class token; only "
        "square grids can be resized"
    )
