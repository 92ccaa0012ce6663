"""Replaying one step of a run, to find where its first number arises that is not finite."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.checkpoint import Choice, check_contract, open_checkpoint
from clipjax.checkpoint.folders import committed_steps
from clipjax.checkpoint.restore import restore_step
from clipjax.diagnostics import INTERMEDIATES
from clipjax.experiment import Experiment
from clipjax.experiment.resolving import make_objective_of
from clipjax.layers.execution import APART
from clipjax.losses.objectives import apply_objective, split_variables
from clipjax.models.images import normalise_images
from clipjax.models.layers_layout import unstack_layers
from clipjax.models.lora import merged
from clipjax.partitioning import global_batch
from clipjax.train_state import OBJECTIVE_STREAM, TrainState
from clipjax.trees import flatten_with_names

CHECKPOINTS = "checkpoints"
SHOWN = 5


def replay(experiment: Experiment, step: int) -> list[str]:
    """Trains from the newest checkpoint before a step up to it, and looks into that one.

    Nothing is written. The step's whole batch runs at once, block by block, by XLA's attention.

    Args:
        experiment: the run.
        step: its number, from 1, as in `skipped.jsonl`: the one that makes state `step`.

    Returns:
        Lines that say what was replayed, and which part is the first that is not finite.

    Raises:
        ValueError: no such step, or the checkpoint is of another model.
    """
    settings, program = experiment.settings, experiment.program
    if not 1 <= step <= settings.total_steps:
        raise ValueError(
            f"--step={step}: steps of the run are 1 to {settings.total_steps}, config.total_steps"
        )
    with program.scope():
        state, start = _state_before(experiment, step)
        said = [f"step {step}, from state {start}: {step - 1 - start} steps replayed before it"]
        batches = experiment.loader.iterate(start)
        for number in range(start, step - 1):
            batch = global_batch(next(batches)[1], program.mesh)
            state, _ = program.stages[program.stage_index(number)].step(state, batch)
        batch = global_batch(next(batches)[1], program.mesh)
        stage = program.stages[program.stage_index(step - 1)]
        found = _of_state(state) or _of_passes(experiment, stage, state, batch)
        if found:
            return [*said, *found]
        skipped = int(state.skipped)
        state, metrics = stage.step(state, batch)
    if int(state.skipped) > skipped:
        rate = float(metrics["learning_rate"])
        made = "what the optimizer or the averages make is not"
        if not math.isfinite(rate):
            made = f"the learning rate of config.schedule is {rate}"
        return [*said, f"loss and gradient are finite; {made}"]
    numbers = f"loss {float(metrics['loss']):.6g}, grad_norm {float(metrics['grad_norm']):.6g}"
    return [*said, f"all is finite: {numbers}"]


def _state_before(experiment: Experiment, step: int) -> tuple[TrainState, int]:
    """The state of the newest checkpoint before a step, or the first one."""
    program, folder = experiment.program, Path(experiment.workdir) / CHECKPOINTS
    steps = [number for number in committed_steps(folder) if number < step]
    if not steps:
        state = program.create_state(experiment.settings.seed)
        return (state if experiment.load_init is None else experiment.load_init(state)[0]), 0
    choice: Choice = open_checkpoint(folder / str(steps[-1]))
    check_contract(choice.manifest.contract, experiment.metadata["contract"])
    return restore_step(choice.step_dir, choice.manifest, program.abstract_state), steps[-1]


def _of_state(state: TrainState) -> list[str]:
    for part in ("params", "model_state"):
        leaves = flatten_with_names(getattr(state, part))
        bad = [name for name, leaf in leaves if not _is_finite(leaf)]
        if bad:
            return [f"the state before it is not finite: {_some(part, bad)}"]
    return []


def _of_passes(experiment: Experiment, stage: Any, state: TrainState, batch: Any) -> list[str]:
    """What of the forward pass, the loss or the gradient is not finite first."""
    settings, spec = experiment.settings, stage.spec
    model = stage.under(APART).model
    objective = make_objective_of(stage.settings, spec, experiment.program.mesh)
    kept, kept_by_objective = split_variables(state.model_state)
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    examples = {**batch, "example_ids": jnp.arange(batch["text"].shape[0])}
    names: list[str] = []  # of what the modules gave, in the order in which they ended

    def loss_of(params: Any, examples: Any) -> tuple[jax.Array, Any]:
        if (scale := settings.lora.scale) is not None:
            params = merged(params, scale)
        of_model, own = split_variables({"params": params})
        images = examples["image"]
        if (jitter := experiment.resolved.color_jitter) is not None:
            images = jitter(images, key, examples["example_ids"])
        preprocess = spec["preprocess"]
        images = normalise_images(images, preprocess["mean"], preprocess["std"], model.dtype)
        options = {"with_tokens": objective.needs} if objective.needs else {}
        output, sown = model.apply(
            {**of_model, **kept},
            images,
            examples["text"],
            train=True,
            example_ids=examples["example_ids"],
            rngs={"dropout": key},
            mutable=[*kept, INTERMEDIATES],
            capture_intermediates=True,
            **options,
        )
        outputs = list(_walk(sown[INTERMEDIATES]))
        names[:] = [name for name, _ in outputs]
        looked = [_look(value) for _, value in outputs]
        variables = {**own, **kept_by_objective}
        seen = {**examples, "image": images}
        rng = jax.random.fold_in(key, OBJECTIVE_STREAM)
        (loss, _), _ = apply_objective(objective, variables, output, seen, rng)
        return loss, looked

    (loss, looked), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        unstack_layers(state.params), examples
    )
    largest = ""
    for name, (finite, size) in zip(names, looked, strict=True):
        if not finite:
            before = f"; before it the largest number is {largest}" if largest else ""
            return [f"the forward pass: the output of {name} is not finite{before}"]
        largest = f"{float(size):.4g}, of {name}"
    if not _is_finite(loss):
        return [f"the loss is {float(loss)}; the outputs of all modules are finite"]
    leaves = flatten_with_names(grads)
    bad = [name for name, leaf in leaves if not _is_finite(leaf)]
    if not bad:
        return []
    # The backward pass goes the other way: the module that ended last comes first.
    order = {name: place for place, name in enumerate(names)}
    bad.sort(key=lambda name: -order.get(name.rpartition("/")[0], len(order)))
    return [
        f"the loss is {float(loss):.6g}; the gradient is not finite, in the order of the backward "
        f"pass: {_some('params', bad)}"
    ]


def _walk(sown: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (module, output) in the order in which the modules ended."""
    for name, value in sown.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{path}/{name}" if path else name)
        elif name == "__call__":
            yield path or "the model", value


def _look(value: Any) -> tuple[jax.Array, jax.Array]:
    """Whether all of an output is finite, and its largest absolute number."""
    leaves = [x for x in jax.tree.leaves(value) if jnp.issubdtype(x.dtype, jnp.inexact) and x.size]
    if not leaves:
        return jnp.array(True), jnp.array(0.0)
    sizes = jnp.stack([jnp.max(jnp.abs(x)).astype(jnp.float32) for x in leaves])
    return jnp.all(jnp.isfinite(sizes)), jnp.max(sizes)


def _is_finite(leaf: jax.Array) -> bool:
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.all(jnp.isfinite(leaf)))


def _some(part: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{part}/{name}" for name in names[:SHOWN]) + more
