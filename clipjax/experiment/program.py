"""What the devices execute: model, loss, optimizer, shardings, the jitted step of each stage."""

import bisect
import dataclasses
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
from clipjax.config_fields import OptimizerSettings, Settings
from clipjax.experiment.execution import choose_execution, memory_of, rows_that_fit
from clipjax.experiment.memory import setting_of, step_of
from clipjax.experiment.resolving import Resolved, make_objective_of
from clipjax.experiment.stages import Stage, check_same_parameters
from clipjax.layers.execution import Execution
from clipjax.losses.objectives import join_variables, load_collections, split_variables
from clipjax.models.clip import CLIP
from clipjax.models.layers_layout import laid_out_like
from clipjax.optim import make_optimizer, make_schedule, matcher, optimizer_report
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
    with named("config.schedule"):
        schedule = make_schedule(
            learning_rate=settings.optimizer.learning_rate,
            total_steps=settings.total_steps,
            plugins=ANY_MODULE,
            **dataclasses.asdict(settings.schedule),
        )
    with named("config"):
        mesh = partitioning.make_mesh(dataclasses.asdict(settings.mesh), devices)
    execution = choose_execution(settings, mesh)
    boxed = own.abstract_apart if execution.apart else own.abstract_variables
    params = unbox(boxed["params"])  # as the step has them
    with named("config.optimizer"):
        tx, summary = _optimizer(settings.optimizer, resolved.frozen, params, schedule)
        names = [name for name, _ in flatten_with_names(params)]
        frozen = matcher(resolved.frozen, names, path="freeze")
        if execution.apart:  # a pattern names what is kept, the stacks, as on every platform
            kept = [name for name, _ in flatten_with_names(stacked)]
            matcher(resolved.frozen, kept, path="freeze")
            for path in ("lr_scale", "layer_decay"):
                matcher([p for p, _ in getattr(settings.optimizer, path)], kept, path=path)

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
            frozen=frozen,
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
        with named("config.objective"):
            loaded = load_collections(own.objective, split_variables(laid_out.model_state)[1])
        state = jax.jit(create_stacked, out_shardings=shardings)(jax.random.key(seed))
        kept, of_objective = split_variables(state.model_state)
        return state.replace(model_state=join_variables(kept, {**of_objective, **loaded}))

    memory_bytes = memory_of(mesh) if memory_bytes is None else memory_bytes
    rows: tuple[str, ...] = (remat or execution.remat,)
    if settings.remat == "auto" and remat is None:
        rows = _rows(settings, resolved.stages, laid_out, mesh, execution, memory_bytes)
    execution = dataclasses.replace(execution, remat=rows[0])
    # What evaluates takes the parameters as they are kept.
    stages = [stage.under(dataclasses.replace(execution, apart=False)) for stage in resolved.stages]
    if settings.attention not in ("auto", "xla"):  # the others may not be for these towers
        with named("config"), jax.set_mesh(mesh), under_rules(resolved.rules.params):
            for stage in stages:
                jax.eval_shape(stage.init_variables, key)
    objective = make_objective_of(settings, own.spec, mesh)
    num_micro_batches = _num_micro_batches(settings, mesh)
    check_stateless(abstract.model_state, num_micro_batches, name="config.micro_batch_size")

    def step_of(stage: Stage, diagnosed_rows: int = 0) -> StepFn:
        return make_train_step(
            stage.under(execution).model.apply,
            objective,
            tx,
            seed=settings.seed,
            image_mean=stage.spec["preprocess"]["mean"],
            image_std=stage.spec["preprocess"]["std"],
            dtype=stage.model.dtype,
            max_logit_scale=stage.spec["logit_scale"]["max"],
            schedule=schedule,
            ema_decay=settings.optimizer.ema_decay,
            averages=decays,
            frozen=frozen,
            cast=casts_of(stage.spec),
            num_micro_batches=num_micro_batches,
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
        rows = min(settings.batch_size, -(-diagnostics.ROWS // shards) * shards)
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
        same = next((earlier for earlier in done if earlier.spec == stage.spec), None)
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
    settings: Settings,
    stages: Sequence[Stage],
    state: TrainState,
    mesh: Mesh,
    execution: Execution,
    memory_bytes: float | None,
) -> tuple[str, ...]:
    """The rows of recomputation that should fit in every stage."""
    setting = setting_of(settings, mesh, "none")
    of_stages = [
        rows_that_fit(
            step_of(settings, state, mesh, stage.spec, execution),
            setting,
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


def _num_micro_batches(settings: Settings, mesh: Mesh) -> int:
    shards = partitioning.num_batch_shards(mesh)
    micro = settings.micro_batch_size or settings.batch_size
    for path, size in (("batch_size", settings.batch_size), ("micro_batch_size", micro)):
        if size % shards:
            raise ValueError(
                f"config.{path} = {size} does not divide over the {shards} devices of "
                f"config.mesh data x fsdp; choose a multiple of {shards}"
            )
    return settings.batch_size // micro


def _optimizer(
    optimizer: OptimizerSettings, frozen: Sequence[str], params: Any, schedule: Any
) -> tuple[Any, str]:
    who = {
        "freeze": frozen,
        "lr_scale": optimizer.lr_scale,
        "layer_decay": optimizer.layer_decay,
    }
    tx = make_optimizer(
        params,
        schedule=schedule,
        name=optimizer.name,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        mask=optimizer.decay_mask,
        clip_norm=optimizer.clip_norm,
        clip_update=optimizer.clip_update,
        mu_dtype=optimizer.mu_dtype,
        momentum=optimizer.muon_momentum,
        rms=optimizer.muon_rms,
        plugins=ANY_MODULE,
        **who,
    )
    summary = optimizer_report(
        params, mask=optimizer.decay_mask, weight_decay=optimizer.weight_decay, **who
    )
    return tx, summary
