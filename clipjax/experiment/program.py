"""What the devices execute: model, loss, optimizer, shardings, the jitted step of each stage."""

import bisect
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax import diagnostics, partitioning
from clipjax.averages import decay_of
from clipjax.building import ANY_MODULE
from clipjax.compiler_flags import step_flags
from clipjax.config_stages import StageConfig
from clipjax.experiment.execution import choose_execution, memory_of, rows_that_fit
from clipjax.experiment.freezing import Fixed
from clipjax.experiment.memory import setting_of, step_of
from clipjax.experiment.resolving import Resolved, make_objective_of
from clipjax.experiment.stages import Stage, check_same_parameters, make_schedules
from clipjax.layers.execution import Execution
from clipjax.losses.objectives import join_variables, load_collections, split_variables
from clipjax.models.clip import CLIP
from clipjax.models.layers_layout import laid_out_like
from clipjax.models.lora import merged
from clipjax.optim import (
    hold_rows,
    make_optimizer,
    make_stage_optimizers,
    matcher,
    optimizer_report,
)
from clipjax.partitioning.boxes import boxed_axes, unbox, under_rules
from clipjax.ranges import named
from clipjax.train_state import TrainState, create_train_state
from clipjax.train_step import StepFn, check_stateless, make_train_step
from clipjax.trees import flatten_with_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the devices execute.

    Attributes:
        stages: in their order, each with its step; the last one is the model's own size.
        mesh: the devices.
        rules: the sharding rules in force.
        abstract_state: shapes and shardings of the train state.
        state_axes: logical axes of each of its leaves.
        execution: how the towers run.
        memory_bytes: of one device; None where it is not known.
        rows: of recomputation, that of `execution` and the next ones to try if it does not fit.
        create_state: makes the state of step 0 from a seed, sharded.
        optimizer_summary: what the optimizer does to each parameter, as text.
    """

    stages: tuple[Stage, ...]
    mesh: Mesh
    rules: partitioning.ShardingRules
    abstract_state: TrainState
    state_axes: TrainState
    execution: Execution
    memory_bytes: float | None
    rows: tuple[str, ...]
    create_state: Callable[[int], TrainState]
    optimizer_summary: str

    @property
    def model(self) -> CLIP:
        """The two towers."""
        return self.stages[-1].model

    @property
    def spec(self) -> dict[str, Any]:
        """The model's spec, whole."""
        return self.stages[-1].spec

    @property
    def step(self) -> Any:
        """The step at the model's own size, the last stage's."""
        return self.stages[-1].step

    @property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A global batch at the model's own size."""
        return self.batch_of(self.stages[-1])

    def batch_of(self, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of a stage's global batch."""
        return stage.batch_shapes(partitioning.batch_sharding(self.mesh))

    def stage_index(self, step: int) -> int:
        """The stage that a step belongs to."""
        return bisect.bisect_right([stage.until_step for stage in self.stages[:-1]], step)

    def num_examples(self, step: int) -> int:
        """How many examples the steps before a step hold."""
        done = ((min(step, stage.until_step) - stage.from_step, stage) for stage in self.stages)
        return sum(max(0, steps) * stage.batch_size for steps, stage in done)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The mesh and the rules that the program is traced under."""
        with jax.set_mesh(self.mesh), under_rules(self.rules.params):
            yield


def build_program(
    resolved: Resolved,
    devices: Sequence[jax.Device] | None = None,
    *,
    memory_bytes: float | None = None,
    remat: str | None = None,
) -> Program:
    """Builds loss, optimizer, shardings and the jitted step of every stage.

    Args:
        resolved: of `resolve`.
        devices: to lay the mesh over; those of this run by default.
        memory_bytes: of one device, which `config.remat = auto` chooses by; what the devices
            themselves say by default.
        remat: what it has chosen before.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    settings, own = resolved.settings, resolved.stages[-1]
    check_same_parameters(resolved.stages)
    key = jax.eval_shape(lambda: jax.random.key(0))  # a shape: no device is touched up to the mesh
    stacked = unbox(own.abstract_variables["params"])
    schedule = make_schedules([stage.config for stage in resolved.stages])
    with named("config"):
        mesh = partitioning.make_mesh(dataclasses.asdict(settings.mesh), devices)
    execution = choose_execution(settings, mesh)
    boxed = own.abstract_in(execution)
    params = unbox(boxed["params"])  # as the step has them
    frozen = {stage.config.path: _frozen(stage, own, execution) for stage in resolved.stages}
    with named("config.optimizer"):
        txs, summary = _optimizers(resolved.stages, frozen, params, schedule)
        if execution.apart:  # a pattern names what is kept, the stacks, as on every platform
            kept = [name for name, _ in flatten_with_names(stacked)]
            for path in ("lr_scale", "layer_decay"):
                matcher([p for p, _ in getattr(settings.optimizer, path)], kept, path=path)
    tx = txs[own.config.path]  # the state is the same of all

    with_ema = settings.optimizer.ema_decay is not None
    decays = {
        average["name"]: average["decay"] if "decay" in average else decay_of(average["half_life"])
        for average in settings.optimizer.averages
    }

    def state_of(variables: Mapping[str, Any]) -> TrainState:
        variables = laid_out_like(unbox(variables), params)
        return create_train_state(
            variables,
            tx,
            with_ema=with_ema,
            with_spike_guard=settings.optimizer.spike_factor is not None,
            averages=decays,
            frozen=lambda name: all(fixed(name) for fixed in frozen.values()),
        )

    def create(key: jax.Array) -> TrainState:
        return state_of(own.init_variables(key))

    def create_stacked(key: jax.Array) -> TrainState:
        return laid_out_like(create(key), stacked)

    # From the variables' shapes: the model is not traced again.
    inside = jax.eval_shape(state_of, own.abstract_variables)
    abstract = jax.eval_shape(lambda state: laid_out_like(state, stacked), inside)
    axes_inside = partitioning.state_axes(inside, boxed_axes(boxed), tx)
    axes = laid_out_like(axes_inside, stacked, stack=partitioning.stacked_axes)
    with named("config"):
        shardings = partitioning.state_shardings(abstract, axes, mesh, resolved.rules)
        shardings_inside = shardings
        if execution.apart:
            shardings_inside = partitioning.state_shardings(
                inside, axes_inside, mesh, resolved.rules
            )
    laid_out = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        shardings,
    )

    def create_state(seed: int) -> TrainState:
        loaded: dict[str, Any] = {}
        for stage in (*own.beside, own):
            with named(stage.config.where("objective")):
                declared = split_variables(laid_out.model_state)[1]
                loaded |= load_collections(stage.objective, declared)
        state = jax.jit(create_stacked, out_shardings=shardings)(jax.random.key(seed))
        kept, of_objective = split_variables(state.model_state)
        return state.replace(model_state=join_variables(kept, {**of_objective, **loaded}))

    memory_bytes = memory_of(mesh) if memory_bytes is None else memory_bytes
    rows: tuple[str, ...] = (remat or execution.remat,)
    if settings.remat == "auto" and remat is None:
        rows = _rows(resolved.stages, laid_out, mesh, execution, memory_bytes)
    execution = dataclasses.replace(execution, remat=rows[0])
    # What evaluates takes the parameters as they are kept, and says itself what it reads.
    evaluating = dataclasses.replace(execution, apart=False, pooled_only=False)
    stages = [stage.under(evaluating) for stage in resolved.stages]
    if settings.attention not in ("auto", "xla"):  # the others may not be for these towers
        with named("config"), jax.set_mesh(mesh), under_rules(resolved.rules.params):
            for stage in stages:
                jax.eval_shape(stage.init_variables, key)
    micro_batches = {
        stage.config.path: _num_micro_batches(stage.config, mesh) for stage in resolved.stages
    }
    most = max(micro_batches.values())
    check_stateless(abstract.model_state, most, name="config.micro_batch_size")

    scale = settings.lora.scale
    merge = None if scale is None else functools.partial(merged, scale=scale)

    def step_of(stage: Stage, diagnosed_rows: int = 0) -> StepFn:
        narrow = bool(stage.narrow_towers(execution))
        return make_train_step(
            stage.under(dataclasses.replace(execution, pooled_only=narrow)).model.apply,
            make_objective_of(stage.settings, own.spec, mesh),
            txs[stage.config.path],
            seed=settings.seed,
            image_mean=stage.spec["preprocess"]["mean"],
            image_std=stage.spec["preprocess"]["std"],
            dtype=stage.model.dtype,
            max_logit_scale=stage.spec["logit_scale"]["max"],
            schedule=schedule,
            ema_decay=settings.optimizer.ema_decay,
            averages=decays,
            frozen=frozen[stage.config.path],
            held=frozen[stage.config.path].rows,
            cast=casts_of(stage.spec),
            merge=merge,
            num_micro_batches=micro_batches[stage.config.path],
            color_jitter=resolved.color_jitter,
            spike_factor=settings.optimizer.spike_factor,
            diagnosed_rows=diagnosed_rows,
        )

    flags = step_flags(execution.platform, mesh.devices.size) or None

    def jit_step(stage: Stage) -> Any:
        step = jax.jit(
            step_of(stage),
            in_shardings=(shardings_inside, partitioning.batch_sharding(mesh)),
            # Left free, the compiler may return the state with fewer axes than it came with.
            out_shardings=(shardings_inside, partitioning.replicated(mesh)),
            donate_argnums=0,
            compiler_options=flags,
        )
        if not execution.apart:
            return step
        return StepApart(step, params, stacked, shardings_inside, shardings)

    def jit_diagnose(stage: Stage) -> Any:
        """A program of its own: that of the step, and so its numbers, stay what they are."""
        if not settings.diagnostics:
            return None
        shards = partitioning.num_batch_shards(mesh)
        rows = min(stage.batch_size, -(-diagnostics.ROWS // shards) * shards)
        diagnosed = step_of(stage, rows)

        def diagnose(state: TrainState, batch: Any) -> dict[str, jax.Array]:
            _, metrics = diagnosed(laid_out_like(state, params), batch)
            return diagnostics.only_of_here(metrics)

        return jax.jit(
            diagnose,
            in_shardings=(shardings, partitioning.batch_sharding(mesh)),
            out_shardings=partitioning.replicated(mesh),
            compiler_options=flags,
        )

    return Program(
        stages=_with_steps(stages, jit_step, jit_diagnose),
        mesh=mesh,
        rules=resolved.rules,
        abstract_state=laid_out,
        state_axes=axes,
        execution=execution,
        memory_bytes=memory_bytes,
        rows=rows,
        create_state=create_state,
        optimizer_summary=summary,
    )


def _with_steps(
    stages: Sequence[Stage],
    jit_step: Callable[[Stage], Any],
    jit_diagnose: Callable[[Stage], Any],
) -> tuple[Stage, ...]:
    """Jits the steps: none is compiled here, and those of equal stages are one."""
    done: list[Stage] = []
    for stage in stages:
        same = next((earlier for earlier in done if earlier.computes == stage.computes), None)
        step = same.step if same else jit_step(stage)
        diagnose = same.diagnose if same else jit_diagnose(stage)
        done.append(dataclasses.replace(stage, step=step, diagnose=diagnose))
    return tuple(done)


class StepApart:
    """A jitted step whose state is stacked outside and has its blocks apart inside.

    Three programs: in one, the compiler fuses the stacking with the optimizer, and its numbers
    differ in the last bit from those of a state that is apart.
    """

    def __init__(
        self, step: Any, inside: Any, outside: Any, shardings_inside: Any, shardings: Any
    ) -> None:
        """Jits the two changes of the layout, to the parameters `inside` and `outside`."""
        self.step = step
        self.take_apart = jax.jit(
            lambda state: laid_out_like(state, inside),
            in_shardings=(shardings,),
            out_shardings=shardings_inside,
        )
        self.put_together = jax.jit(
            lambda state: laid_out_like(state, outside),
            in_shardings=(shardings_inside,),
            out_shardings=shardings,
        )
        self.whole = jax.jit(self, donate_argnums=0)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """Runs a step; the state may be deleted, as a step's is."""
        state, metrics = self.step(self.take_apart(state), batch)
        return self.put_together(state), metrics

    def trace(self, *inputs: Any) -> Any:
        """Traces the whole, as `jax.jit` does."""
        return self.whole.trace(*inputs)

    def lower(self, *inputs: Any) -> Any:
        """Lowers the whole, as `jax.jit` does."""
        return self.whole.lower(*inputs)


def _rows(
    stages: Sequence[Stage],
    state: TrainState,
    mesh: Mesh,
    execution: Execution,
    memory_bytes: float | None,
) -> tuple[str, ...]:
    """The rows of recomputation that should fit in every stage."""
    of_stages = [
        rows_that_fit(
            step_of(stage, state, mesh, execution),
            setting_of(stage.settings, mesh, "none"),
            memory_bytes,
            platform=execution.platform,
        )
        for stage in stages
    ]
    return min(of_stages, key=len)


def casts_of(spec: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which parameters the towers multiply by in the dtype of the computation, and use in no other.

    The kernels of all layers of ours are; what a tower of someone's own does is not known.
    """
    encoders = [tower for tower in ("image", "text") if ":" not in spec[tower]["name"]]
    modules = [f"{tower}_encoder" for tower in encoders] + ["image_projection", "text_projection"]
    kernel = re.compile(rf"({'|'.join(modules)})/(.*/)?\w*kernel")
    return lambda name: kernel.fullmatch(name) is not None


def _num_micro_batches(stage: StageConfig, mesh: Mesh) -> int:
    shards = partitioning.num_batch_shards(mesh)
    batch = stage.settings.batch_size
    micro = stage.settings.micro_batch_size or batch
    for name, size in (("batch_size", batch), ("micro_batch_size", micro)):
        if size % shards:
            raise ValueError(
                f"{stage.where(name)} = {size} does not divide over the {shards} devices of "
                f"config.mesh data x fsdp; choose a multiple of {shards}"
            )
    return batch // micro


def _frozen(stage: Stage, own: Stage, execution: Execution) -> Fixed:
    """Which parameters a stage leaves as they are: its patterns say, and its objective.

    A pattern names what is kept, as on every platform. Of an objective that another stage has, it
    trains nothing.
    """
    kept = flatten_with_names(unbox(own.abstract_variables["params"]))
    fixed = stage.fixed_in({name: leaf.shape for name, leaf in kept})
    if not own.beside:
        return fixed
    single = dataclasses.replace(stage, beside=())
    trained = dict(flatten_with_names(unbox(single.abstract_in(execution)["params"])))
    params = flatten_with_names(unbox(own.abstract_in(execution)["params"]))
    others = {name for name, _ in params if name not in trained}
    return dataclasses.replace(fixed, names=fixed.names | others)


def _optimizers(
    stages: Sequence[Stage],
    frozen: Mapping[str, Fixed],
    params: Any,
    schedule: Any,
) -> tuple[dict[str, Any], str]:
    """The optimizer of each stage by its path in the config, and what it does as text."""
    optimizer, last = stages[-1].settings.optimizer, frozen[stages[-1].config.path]
    factors = {"lr_scale": optimizer.lr_scale, "layer_decay": optimizer.layer_decay}
    options: dict[str, Any] = {
        "schedule": schedule,
        "name": optimizer.name,
        "b1": optimizer.b1,
        "b2": optimizer.b2,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "mask": optimizer.decay_mask,
        "clip_norm": optimizer.clip_norm,
        "clip_update": optimizer.clip_update,
        "mu_dtype": optimizer.mu_dtype,
        "momentum": optimizer.muon_momentum,
        "rms": optimizer.muon_rms,
        "plugins": ANY_MODULE,
        **factors,
    }
    summary = optimizer_report(
        params,
        mask=optimizer.decay_mask,
        weight_decay=optimizer.weight_decay,
        freeze=last,
        held=last.rows,
        **factors,
    )
    sizes = {name: math.prod(leaf.shape) for name, leaf in flatten_with_names(params)}
    fixed = {
        path: {name for name in sizes if is_frozen(name)} for path, is_frozen in frozen.items()
    }
    if all(names == fixed[stages[-1].config.path] for names in fixed.values()):
        tx = make_optimizer(params, freeze=last if fixed[stages[-1].config.path] else (), **options)
        return {path: hold_rows(tx, each.rows) for path, each in frozen.items()}, summary
    for path, names in fixed.items():
        count = sum(sizes[name] for name in names)
        summary += f"\n{path}: {count:,} of {sum(sizes.values()):,} parameters frozen"
    txs = make_stage_optimizers(params, list(frozen.values()), **options)
    held = [hold_rows(tx, fixed.rows) for tx, fixed in zip(txs, frozen.values(), strict=True)]
    return dict(zip(frozen, held, strict=True)), summary
