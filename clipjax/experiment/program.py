"""What the devices execute: model, loss, optimizer, shardings, the jitted step of each stage."""

import bisect
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax import partitioning
from clipjax.building import ANY_MODULE
from clipjax.compiler_flags import step_flags
from clipjax.config_fields import OptimizerSettings, Settings
from clipjax.experiment.execution import choose_execution
from clipjax.experiment.resolving import Resolved, make_objective_of
from clipjax.experiment.stages import Stage, check_same_parameters
from clipjax.layers.execution import Execution
from clipjax.losses.objectives import join_variables, load_collections, split_variables
from clipjax.models.clip import CLIP
from clipjax.optim import make_optimizer, make_schedule, matcher, optimizer_report
from clipjax.partitioning.boxes import boxed_axes, unbox, under_rules
from clipjax.platforms import platform_of
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
        create_state: makes the state of step 0 from a seed, sharded.
        optimizer_summary: what the optimizer does to each parameter, as text.
    """

    stages: tuple[Stage, ...]
    mesh: Mesh
    rules: partitioning.ShardingRules
    abstract_state: TrainState
    state_axes: TrainState
    execution: Execution
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
        with ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.mesh))
            stack.enter_context(under_rules(self.rules.params))
            yield


def build_program(resolved: Resolved, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds loss, optimizer, shardings and the jitted step of every stage.

    Args:
        resolved: of `resolve`.
        devices: to lay the mesh over; those of this run by default.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    settings, own = resolved.settings, resolved.stages[-1]
    check_same_parameters(resolved.stages)
    key = jax.eval_shape(lambda: jax.random.key(0))  # a shape: no device is touched up to the mesh
    boxed = own.abstract_variables
    params = unbox(boxed["params"])
    with named("config.schedule"):
        schedule = make_schedule(
            learning_rate=settings.optimizer.learning_rate,
            total_steps=settings.total_steps,
            plugins=ANY_MODULE,
            **dataclasses.asdict(settings.schedule),
        )
    with named("config.optimizer"):
        tx, summary = _optimizer(settings.optimizer, resolved.frozen, params, schedule)
        names = [name for name, _ in flatten_with_names(params)]
        frozen = matcher(resolved.frozen, names, path="freeze")

    def create(key: jax.Array) -> TrainState:
        with_ema = settings.optimizer.ema_decay is not None
        return create_train_state(own.init_variables(key), tx, with_ema=with_ema)

    abstract = jax.eval_shape(create, key)
    axes = partitioning.state_axes(abstract, boxed_axes(boxed), tx)
    with named("config"):
        mesh = partitioning.make_mesh(dataclasses.asdict(settings.mesh), devices)
        shardings = partitioning.state_shardings(abstract, axes, mesh, resolved.rules)
    laid_out = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        shardings,
    )

    def create_state(seed: int) -> TrainState:
        with named("config.objective"):
            loaded = load_collections(own.objective, split_variables(laid_out.model_state)[1])
        state = jax.jit(create, out_shardings=shardings)(jax.random.key(seed))
        kept, of_objective = split_variables(state.model_state)
        return state.replace(model_state=join_variables(kept, {**of_objective, **loaded}))

    execution = choose_execution(settings, mesh)
    stages = [stage.under(execution) for stage in resolved.stages]
    if settings.attention not in ("auto", "xla"):  # the others may not be for these towers
        with named("config"):
            for stage in stages:
                jax.eval_shape(stage.init_variables, key)
    objective = make_objective_of(settings, own.spec, mesh)
    num_micro_batches = _num_micro_batches(settings, mesh)
    check_stateless(abstract.model_state, num_micro_batches, name="config.micro_batch_size")

    def step_of(stage: Stage) -> StepFn:
        return make_train_step(
            stage.model.apply,
            objective,
            tx,
            seed=settings.seed,
            image_mean=stage.spec["preprocess"]["mean"],
            image_std=stage.spec["preprocess"]["std"],
            dtype=stage.model.dtype,
            max_logit_scale=stage.spec["logit_scale"]["max"],
            schedule=schedule,
            ema_decay=settings.optimizer.ema_decay,
            frozen=frozen,
            cast=_is_cast(stage.spec),
            num_micro_batches=num_micro_batches,
            color_jitter=resolved.color_jitter,
        )

    return Program(
        stages=_with_steps(stages, step_of, shardings, mesh),
        mesh=mesh,
        rules=resolved.rules,
        abstract_state=laid_out,
        state_axes=axes,
        execution=execution,
        create_state=create_state,
        optimizer_summary=summary,
    )


def _with_steps(
    stages: Sequence[Stage],
    step_of: Callable[[Stage], StepFn],
    shardings: TrainState,
    mesh: Mesh,
) -> tuple[Stage, ...]:
    """Jits the steps: none is compiled before a step of its stage runs."""
    done: list[Stage] = []
    flags = step_flags(platform_of(mesh), mesh.devices.size) or None
    for stage in stages:
        same = next((earlier.step for earlier in done if earlier.spec == stage.spec), None)
        step = same or jax.jit(
            step_of(stage),
            in_shardings=(shardings, partitioning.batch_sharding(mesh)),
            # Left free, the compiler may return the state with fewer axes than it came with.
            out_shardings=(shardings, partitioning.replicated(mesh)),
            donate_argnums=0,
            compiler_options=flags,
        )
        done.append(dataclasses.replace(stage, step=step))
    return tuple(done)


def _is_cast(spec: Mapping[str, Any]) -> Callable[[str], bool]:
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
    who = {"freeze": frozen, "lr_scale": optimizer.lr_scale}
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
        mu_dtype=optimizer.mu_dtype,
        plugins=ANY_MODULE,
        **who,
    )
    summary = optimizer_report(
        params, mask=optimizer.decay_mask, weight_decay=optimizer.weight_decay, **who
    )
    return tx, summary
