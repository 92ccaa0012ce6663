"""Where a run starts. The first of these that there is, and the reason of its place:

1. the workdir's newest whole step: a run that was killed goes on, whatever else is set, so that
   the same command line starts and restarts a run;
2. `config.resume`: the whole state of another run, its step number included;
3. `config.init`: parameters and running statistics; the optimizer and the step start anew;
4. scratch.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from absl import logging

from clipjax.checkpoint.manager import CheckpointManager
from clipjax.layers.position_embeddings import resize_grid, resize_sequence
from clipjax.partitioning import place
from clipjax.trees import flatten_with_names, map_with_names, matching_leaves, rename_leaves


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
        sizes = {n: f"{n} {list(old)} -> {list(new)}" for n, (old, new) in self.resized.items()}
        rows = {**vars(self), "resized": sizes.values()}
        return [f"{what:<11} {text}" for what, texts in rows.items() for text in texts]


@dataclasses.dataclass(frozen=True)
class Start:
    """A run's first state and where it is from; `report` is that of `init`."""

    state: Any
    step: int
    source: Literal["workdir", "resume", "init", "scratch"]
    report: LoadReport | None = None


def find_start(
    manager: CheckpointManager,
    abstract_state: Any,
    initialise: Callable[[], Any],
    *,
    resume: str | os.PathLike[str] | None = None,
    load_init: Callable[[Any], tuple[Any, LoadReport]] | None = None,
) -> Start:
    """Finds the state that a run starts from, by the priority above.

    Args:
        manager: of the run's own workdir.
        abstract_state: tree of `jax.ShapeDtypeStruct` with shardings.
        initialise: makes a fresh state; called only if it is needed.
        resume: `config.resume`: a checkpoint, or the workdir of a run that this one continues.
        load_init: `config.init`: takes a fresh state, returns it with the parameters and running
            statistics that were loaded, and a report (see `load_pretrained`).

    Raises:
        DamagedCheckpointError, ValueError: see `CheckpointManager.restore_latest`.
    """
    restored = manager.restore_latest(abstract_state)
    if restored is not None:
        return Start(*restored, source="workdir")
    if resume:
        return Start(*manager.restore_from(resume, abstract_state), source="resume")
    state = initialise()
    if load_init is None:
        return Start(state, 0, source="scratch")
    state, report = load_init(state)
    for line in report.lines():
        logging.info("init: %s", line)
    if getattr(state, "ema_params", None) is not None:
        # The average starts at the parameters, in buffers of its own: the step donates both.
        state = state.replace(ema_params=jax.tree.map(_copy, state.params))
    if getattr(state, "averages", None) is not None:
        averages = {
            name: jax.tree.map(
                lambda x, e: e if isinstance(e, optax.MaskedNode) else _copy(x),
                state.params,
                average,
            )
            for name, average in state.averages.items()
        }
        state = state.replace(averages=averages)
    return Start(state, 0, source="init", report=report)


def _copy(x: jax.Array) -> jax.Array:
    return jax.device_put(x, x.sharding, may_alias=False)


def load_pretrained(
    params: Any,
    loaded: Mapping[str, Any],
    *,
    rename: Iterable[tuple[str, str]] = (),
    drop: Iterable[str] = (),
    initialise: Iterable[str] = (),
    strict: bool = True,
) -> tuple[Any, LoadReport]:
    """Puts loaded parameters into those of a model.

    Args:
        params: the model's parameters: arrays, or `jax.ShapeDtypeStruct` if all are to be loaded.
            The result takes their tree, dtype and sharding.
        loaded: nested dict of arrays.
        rename: pairs (regular expression, replacement), applied in order to the loaded names.
        drop: regular expressions of loaded names (renamed) to leave out.
        initialise: regular expressions of the model's names that keep their initial value.
        strict: whether a pattern that matches nothing is a mistake.

    Returns:
        The parameters and a report of every leaf.

    Raises:
        ValueError: a leaf of either side is left over, a shape does not fit, or a pattern matches
            nothing. The message says what to add to config.init.
    """
    names = dict(flatten_with_names(loaded))
    sources = rename_leaves(names, rename, where="config.init.rename", strict=strict)
    targets = dict(flatten_with_names(params))
    ignored = matching_leaves(drop, sources, where="config.init.drop", strict=strict)
    kept = matching_leaves(initialise, targets, where="config.init.initialise", strict=strict)
    sources = {name: value for name, value in sources.items() if name not in ignored}
    _check_leftovers(sources, targets, kept)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def fit(name: str, target: Any) -> Any:
        if name in kept:
            if isinstance(target, jax.ShapeDtypeStruct):
                raise ValueError(f"{name} is to keep its initial value, but only its shape is here")
            return target
        value = jnp.asarray(sources[name])
        if value.shape != target.shape:
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
