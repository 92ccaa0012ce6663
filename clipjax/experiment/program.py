"""What the devices execute, from a config: model, loss, optimizer, shardings, the jitted step."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipjax import partitioning
from clipjax.building import ANY_MODULE, check_plugins, outside_names, resolve
from clipjax.checkpoint import check_model, choose_step, read_manifest, spec_in
from clipjax.config import to_plain, validate
from clipjax.data.transforms import ColorJitter as HostColorJitter
from clipjax.experiment.checks import check_parts
from clipjax.experiment.stages import (
    StageSpec,
    batch_shapes,
    check_same_parameters,
    stage_models,
    stage_specs,
)
from clipjax.layers.color_jitter import ColorJitter
from clipjax.losses import LOSSES, make_loss
from clipjax.models import resolve_spec
from clipjax.models.clip import CLIP
from clipjax.optim import make_optimizer, make_schedule, matcher, optimizer_report
from clipjax.ranges import FieldError, named, unknown_key
from clipjax.train_state import TrainState, create_train_state, init_variables
from clipjax.train_step import StepFn, make_train_step
from clipjax.trees import flatten_with_names

CHECKPOINT_MODEL = "checkpoint"
IMAGE_TOWER = ("^image_(encoder|projection)/",)  # one pattern: SigLIP has no image projection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps of a run whose batches have one shape.

    Attributes:
        until_step: the first step that is not of this stage.
        sizes: what it trains on, in words.
        step: jitted (state, batch) -> (state, metrics); the state is donated. Stages of the same
            sizes share one.
        abstract_batch: shapes and shardings of a global batch.
    """

    until_step: int
    sizes: str
    step: Any
    abstract_batch: dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the devices execute.

    Attributes:
        model: the two towers.
        spec: the model spec, whole.
        mesh: the devices.
        rules: the sharding rules in force.
        abstract_state: shapes and shardings of the train state.
        create_state: makes the state of step 0 from a seed, sharded.
        stages: in their order; the last one is the model's own size.
        report: what the optimizer does to each parameter, as text.
    """

    model: CLIP
    spec: dict[str, Any]
    mesh: Mesh
    rules: partitioning.ShardingRules
    abstract_state: TrainState
    create_state: Callable[[int], TrainState]
    stages: tuple[Stage, ...]
    report: str

    @property
    def step(self) -> Any:
        """The step at the model's own size, the last stage's."""
        return self.stages[-1].step

    @property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A global batch at the model's own size."""
        return self.stages[-1].abstract_batch

    def stage_index(self, step: int) -> int:
        """The stage that a step belongs to."""
        return bisect.bisect_right([stage.until_step for stage in self.stages[:-1]], step)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The mesh and the rules that the program is traced under."""
        with ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.mesh))
            stack.enter_context(nn.logical_axis_rules(self.rules.params))
            yield


def model_plugins(config: ConfigDict) -> tuple[str, ...]:
    """What the names of the model's spec may import: config.plugins, and what the config names.

    A spec may be that of config.init.checkpoint with changes of the config's: it is not enough that
    it comes out of a config.
    """
    named = check_plugins(to_plain(config.plugins), path="config.plugins")
    return (*named, *(name for _, name in outside_names(to_plain(config.model))))


def model_spec(config: ConfigDict) -> dict[str, Any]:
    """Resolves config.model to a whole spec.

    Raises:
        ValueError: an unknown name or field, or no checkpoint to take the model from.
    """
    model = to_plain(config.model)
    if model.get("name") != CHECKPOINT_MODEL:
        return resolve_spec(model)
    if not config.init.checkpoint:
        raise ValueError(
            f"config.model.name = {CHECKPOINT_MODEL!r} needs config.init.checkpoint: the folder of "
            "the model to start from; or name a row of the zoo (`clipjax models` lists them)"
        )
    with named("config.init.checkpoint"):
        step_dir = choose_step(config.init.checkpoint).step_dir
    del model["name"]
    manifest, plugins = read_manifest(step_dir), model_plugins(config)
    file = (model.get("tokenizer") or {}).get("model")
    found = spec_in(step_dir, manifest.contract, plugins=plugins, tokenizer=file)
    check_model(step_dir, manifest, found, plugins=plugins)
    return resolve_spec(model, base=found)


def check_config(config: ConfigDict) -> tuple[StageSpec, ...]:
    """Checks all of a config that can be known without its data and without a device.

    Returns:
        Its stages; the last one holds the model's whole spec.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    return _checked(config)[0]


def _checked(config: ConfigDict) -> tuple[tuple[StageSpec, ...], list[CLIP], ColorJitter | None]:
    validate(config)
    plugins = model_plugins(config)
    stages = stage_specs(config, model_spec(config))
    check_parts(config, stages, plugins=plugins)
    color_jitter = _color_jitter(config, stages[-1].spec)
    return stages, stage_models(config, stages, plugins=plugins), color_jitter


def build_program(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds model, loss, optimizer, shardings and the jitted step of every stage.

    Args:
        config: of `get_config`, with overrides.
        devices: to lay the mesh over; those of this run by default.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    specs, models, color_jitter = _checked(config)
    check_same_parameters(config, specs, models)
    spec, model = specs[-1].spec, models[-1]
    batch = batch_shapes(config, spec)
    rules = partitioning.rules_of(config.sharding, to_plain(config.logical_axes))
    resolve(config.loss.name, LOSSES, path="config.loss", plugins=ANY_MODULE)
    key = jax.eval_shape(lambda: jax.random.key(0))  # a shape: no device is touched up to the mesh
    boxed = jax.eval_shape(lambda key: init_variables(model, key, batch), key)
    params = nn.unbox(boxed)["params"]
    frozen_patterns = _frozen_patterns(config)
    schedule = make_schedule(
        learning_rate=config.optimizer.learning_rate,
        total_steps=config.total_steps,
        plugins=ANY_MODULE,
        **to_plain(config.schedule),
    )
    tx, report = _optimizer(config, params, schedule, frozen_patterns)

    def create(key: jax.Array) -> TrainState:
        with_ema = config.optimizer.ema_decay is not None
        return create_train_state(key, model, tx, batch, with_ema=with_ema)

    abstract = jax.eval_shape(create, key)
    mesh = partitioning.make_mesh(to_plain(config.mesh), devices)
    axes = partitioning.logical_axes(boxed["params"])
    shardings = partitioning.state_shardings(abstract, axes, mesh, rules)
    names = [name for name, _ in flatten_with_names(params)]
    make_step = functools.partial(
        make_train_step,
        loss_fn=make_loss(
            config.loss.name,
            mesh=mesh,
            layout=config.loss.layout,
            batch_axes=partitioning.BATCH_AXES,
            tile_size=config.loss.tile_size,
            plugins=ANY_MODULE,
        ),
        tx=tx,
        seed=config.seed,
        image_mean=spec["preprocess"]["mean"],
        image_std=spec["preprocess"]["std"],
        max_logit_scale=spec["logit_scale"]["max"],
        schedule=schedule,
        ema_decay=config.optimizer.ema_decay,
        frozen=matcher(frozen_patterns, names, path="config.optimizer.freeze"),
        num_micro_batches=_num_micro_batches(config, mesh),
        color_jitter=color_jitter,
    )
    return Program(
        model=model,
        spec=spec,
        mesh=mesh,
        rules=rules,
        abstract_state=jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            abstract,
            shardings,
        ),
        create_state=lambda seed: jax.jit(create, out_shardings=shardings)(jax.random.key(seed)),
        stages=_stages(config, specs, [make_step(m) for m in models], shardings, mesh),
        report=report,
    )


def _stages(
    config: ConfigDict,
    specs: Sequence[StageSpec],
    step_fns: Sequence[StepFn],
    shardings: TrainState,
    mesh: Mesh,
) -> tuple[Stage, ...]:
    """Jits the steps: none is compiled before a step of its stage runs."""
    batch_sharding = partitioning.batch_sharding(mesh)
    stages: list[Stage] = []
    for stage, step_fn in zip(specs, step_fns, strict=True):
        step = jax.jit(
            step_fn,
            in_shardings=(shardings, batch_sharding),
            # Left free, the compiler may return the state with fewer axes than it came with.
            out_shardings=(shardings, partitioning.replicated(mesh)),
            donate_argnums=0,
        )
        for earlier, same in zip(specs, stages, strict=False):
            if earlier.spec == stage.spec:
                step = same.step
        batch = {
            name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=batch_sharding)
            for name, rows in batch_shapes(config, stage.spec).items()
        }
        stages.append(
            Stage(until_step=stage.until_step, sizes=stage.sizes, step=step, abstract_batch=batch)
        )
    return tuple(stages)


def _color_jitter(config: ConfigDict, spec: Mapping[str, Any]) -> ColorJitter | None:
    """Builds config.data.device_color_jitter, with the ranges of the transform on the host."""
    path = "config.data.device_color_jitter"
    fields = to_plain(config.data.device_color_jitter)
    if fields is None:
        return None
    accepted = [field.name for field in dataclasses.fields(ColorJitter)]
    for key in fields:
        if key not in accepted:
            raise ValueError(unknown_key(f"{path}.{key}", accepted))
    for number, transform in enumerate(to_plain(config.data.transforms)):
        name = str(transform.get("name")) if isinstance(transform, Mapping) else ""
        if name == "color_jitter" or name.endswith(":ColorJitter"):
            raise ValueError(
                f"config.data.transforms[{number}] is {name!r} and {path} is set: colours would be "
                "jittered twice; leave one of them out"
            )
    if spec["preprocess"]["resize"] == "patches":
        raise ValueError(
            f"{path} is set and config.model.preprocess.resize = 'patches': the devices jitter "
            "images of one size; set it to None and use the transform 'color_jitter' of "
            "config.data.transforms, which works on the host"
        )
    try:
        values = dataclasses.asdict(HostColorJitter(**fields))
    except FieldError as error:
        raise ValueError(f"{path}.{error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    low, high = values.pop("saturation")
    return ColorJitter(
        saturation=(float(low), float(high)), **{name: float(v) for name, v in values.items()}
    )


def _num_micro_batches(config: ConfigDict, mesh: Mesh) -> int:
    shards = partitioning.num_batch_shards(mesh)
    micro = config.micro_batch_size or config.batch_size
    for path, size in (("batch_size", config.batch_size), ("micro_batch_size", micro)):
        if size % shards:
            raise ValueError(
                f"config.{path} = {size} does not divide over the {shards} devices of "
                f"config.mesh data x fsdp; choose a multiple of {shards}"
            )
    return config.batch_size // micro


def _frozen_patterns(config: ConfigDict) -> tuple[str, ...]:
    locked = IMAGE_TOWER if config.init.lock_image else ()
    return (*to_plain(config.optimizer.freeze), *locked)


def _optimizer(
    config: ConfigDict, params: Any, schedule: Any, frozen_patterns: tuple[str, ...]
) -> tuple[Any, str]:
    optimizer = config.optimizer
    who = {"freeze": frozen_patterns, "lr_scale": to_plain(optimizer.lr_scale)}
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
    report = optimizer_report(
        params, mask=optimizer.decay_mask, weight_decay=optimizer.weight_decay, **who
    )
    return tx, report
