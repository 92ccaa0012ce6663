"""Stages of a run: other sizes, batches, rates first (config.stages).

The parameters are those of the model's own size all along. A stage is another module over them: it
resizes learned image positions as it uses them and takes the first rows of the text's positions.
So state, checkpoints and evaluations know nothing of stages.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.building import ANY_MODULE
from clipjax.config import merge
from clipjax.config_fields import Settings
from clipjax.config_stages import StageConfig, schedule_spans, stage_configs
from clipjax.data.transforms import Transform, make_transforms
from clipjax.experiment.freezing import Fixed, fixed_by, masks_of, masks_of_lora
from clipjax.layers.execution import APART, Execution
from clipjax.losses.objectives import (
    OBJECTIVE,
    join_variables,
    other_texts,
    split_variables,
)
from clipjax.models import build_model
from clipjax.models.clip import CLIP
from clipjax.models.layers_layout import laid_out_like
from clipjax.models.lora import adapted_kernels, add_factors, kernel_of
from clipjax.optim import make_schedule
from clipjax.partitioning.boxes import box_like, unbox
from clipjax.ranges import named
from clipjax.train_state import init_variables, init_with_objective
from clipjax.trees import flatten_with_names

_OF_OBJECTIVE = f"{OBJECTIVE}/"
# One pattern: SigLIP has no image projection. What LoRA adds to the tower is of it, too.
IMAGE_TOWER = ("^(lora/)?image_(encoder|projection)/",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps of a run whose batches have one shape.

    `resolve` decides what a stage is; `build_program` gives it its step, `build_experiment` its
    data.

    Attributes:
        config: its steps, and what it changes of the config.
        spec: the model spec with the stage's sizes.
        model: the module of the spec, over the parameters of the last stage's.
        objective: as built before there is a mesh: it draws the objective's variables and loads
            its collections; the steps call `build_program`'s own.
        beside: for the last stage, those with another objective, whose variables it draws, too.
        transforms: of its examples.
        draws_apart: whether each block's parameters are drawn by its own name, not by its place in
            a stack: what `config.scan_layers = False` has always started from.
        step: jitted (state, batch) -> (state, metrics); the state is donated. Stages of one spec
            share it.
        diagnose: jitted (state, batch) -> metrics, by `config.diagnostics`; None without it.
        data: how its examples become rows of a batch, a `Finishing`.
    """

    config: StageConfig
    spec: dict[str, Any]
    model: CLIP
    objective: Any
    transforms: tuple[Transform, ...]
    beside: tuple["Stage", ...] = ()
    draws_apart: bool = False
    step: Any = None
    diagnose: Any = None
    data: Any = None

    @property
    def from_step(self) -> int:
        """The first step of this stage."""
        return self.config.from_step

    @property
    def until_step(self) -> int:
        """The first step after it."""
        return self.config.until_step

    @property
    def path(self) -> str:
        """Where its sizes stand in the config, for messages."""
        return _place_of(self.config)

    @property
    def num_steps(self) -> int:
        """How many steps it has."""
        return self.until_step - self.from_step

    @property
    def settings(self) -> Settings:
        """The config, with what the stage changes of it."""
        return self.config.settings

    @property
    def batch_size(self) -> int:
        """Examples a step, over all devices."""
        return self.settings.batch_size

    @property
    def num_examples(self) -> int:
        """Examples of all its steps."""
        return self.batch_size * self.num_steps

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of the parameters that take no gradient."""
        locked = IMAGE_TOWER if self.settings.init.lock_image else ()
        return (*self.settings.optimizer.freeze, *locked)

    def is_locked(self, tower: str) -> bool:
        """Whether a tower, `image` or `text`, takes no gradient at all."""
        if not self.frozen and not self.settings.lora.rank:
            return False
        shapes = _parameter_shapes(self)
        fixed = self.fixed_in(shapes, strict=False)
        return all(fixed(name) for name in shapes if kernel_of(name).startswith(f"{tower}_"))

    def narrow_towers(self, execution: Execution) -> tuple[str, ...]:
        """The towers, `image` and `text`, whose last block computes the pooled token alone."""
        if not execution.pooled_only or self.objective.needs:
            return ()
        towers = {"image": self.model.image_encoder, "text": self.model.text_encoder}
        return tuple(
            name
            for name, tower in towers.items()
            if getattr(tower, "pools_one_token", False) and not getattr(tower, "dropout", 0)
        )

    def fixed_in(self, shapes: Mapping[str, Sequence[int]], *, strict: bool = True) -> Fixed:
        """Which parameters take no gradient.

        Args:
            shapes: of the parameters as they are kept, by name.
            strict: whether each pattern has to match something.

        Raises:
            ValueError: a pattern that is none, or matches nothing.
        """
        with named(self.config.where("optimizer.freeze").removesuffix(".freeze")):
            fixed = masks_of(self.frozen, shapes, strict=strict)
        if self.settings.lora.rank:
            with named("config"):
                by_lora = masks_of_lora(self.settings.lora, shapes)
            fixed = {name: hit | by_lora[name] for name, hit in fixed.items()}
        return fixed_by(fixed, shapes)

    @property
    def computes(self) -> list[Any]:
        """What its step follows from, besides the config: stages where it is equal share one."""
        settings = self.settings
        sizes = [self.spec, settings.batch_size, settings.micro_batch_size]
        return [*sizes, self.frozen, settings.loss, settings.objective]

    @property
    def sizes(self) -> str:
        """What the stage trains on, in words."""
        dropout = self.spec["image"].get("patch_dropout") or 0.0
        changed = [
            f", {name} {_value(self.settings, name)}" for name in sorted(self.config.changes)
        ]
        return (
            f"{self.spec['image_size']} pixels, {self.spec['text']['context_length']} tokens, "
            f"patch dropout {dropout:g}{''.join(changed)}"
        )

    def batch_shapes(self, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch."""
        size, length = self.spec["image_size"], self.spec["text"]["context_length"]
        rows = self.batch_size
        lengths = {"text": length}
        for key, (tokenizer, _) in other_texts(self.objective).items():
            lengths[key] = tokenizer.context_length
        return {
            "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8, sharding=sharding),
            **{
                key: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding)
                for key, length in lengths.items()
            },
        }

    def under(self, execution: Execution) -> "Stage":
        """The same stage, its towers and those of the stages beside it run in another way."""
        beside = tuple(each.under(execution) for each in self.beside)
        return dataclasses.replace(self, model=self.model.under(execution), beside=beside)

    def init_variables(self, key: jax.Array) -> dict[str, Any]:
        """Draws the variables of model and objectives, with flax's boxes, their blocks stacked."""
        batch = self.batch_shapes()
        with named("config.model"):
            variables = init_variables(self.model.init, key, batch)
            if self.draws_apart:
                drawn = init_variables(self.under(APART).model.init, key, batch)
                params = laid_out_like(unbox(drawn["params"]), unbox(variables["params"]))
                variables = {**drawn, "params": box_like(variables["params"], params)}
        drawn = self._with_objective(variables, key)
        for stage in self.beside:
            model, own = split_variables(drawn)
            _, others = split_variables(stage._with_objective(variables, key))
            drawn = join_variables(
                model,
                {name: {**others.get(name, {}), **own.get(name, {})} for name in {**own, **others}},
            )
        return self._with_lora(drawn, key)

    def _with_lora(self, variables: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Adds the factors of config.lora to the variables."""
        lora = self.settings.lora
        if not lora.rank:
            return variables
        leaves = flatten_with_names(unbox(split_variables(variables)[0]["params"]))
        with named("config"):
            adapted = adapted_kernels(lora.targets, {name: leaf.shape for name, leaf in leaves})
        return add_factors(variables, key, lora.rank, adapted.__contains__)

    def _with_objective(self, variables: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        batch = self.batch_shapes()
        with named(self.config.where("objective")):
            return init_with_objective(variables, self.model.apply, self.objective, key, batch)

    @functools.cached_property
    def abstract_variables(self) -> dict[str, Any]:
        """The shapes of `init_variables`; no device is touched."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self.init_variables, key)

    def abstract_in(self, execution: Execution) -> dict[str, Any]:
        """The shapes as the step has them in a way of running it."""
        return self.abstract_apart if execution.apart else self.abstract_variables

    @functools.cached_property
    def abstract_apart(self) -> dict[str, Any]:
        """The same with the blocks apart."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        apart = dataclasses.replace(self.under(APART), draws_apart=False)
        return jax.eval_shape(apart.init_variables, key)


def _place_of(stage: StageConfig) -> str:
    return "config.model" if stage.path == "config" else stage.path


def _value(settings: Settings, name: str) -> Any:
    """A field of a config by its dotted name."""
    return functools.reduce(getattr, name.split("."), settings)


def is_unrolled(settings: Settings) -> bool:
    """Whether `config.scan_layers` is False, or `false` of a command line."""
    return str(settings.scan_layers).lower() == "false"


def make_stages(
    settings: Settings,
    spec: Mapping[str, Any],
    objective_of: Callable[[Settings], Any],
    *,
    plugins: Sequence[str] = (),
) -> tuple[Stage, ...]:
    """Resolves config.stages; the last one is the model's own size, up to the run's end.

    Args:
        settings: their stages are dicts as `config_stages` says; what is left out is as the config
            has it.
        spec: the model's.
        objective_of: makes the objective of settings.
        plugins: modules that the towers' names may import.

    Raises:
        ValueError: names the stage and its field, what was found and what is allowed.
    """
    stages: list[Stage] = []
    own = objective_of(settings)
    for stage in stage_configs(settings):
        minimised = stage.settings.loss, stage.settings.objective
        is_same = minimised == (settings.loss, settings.objective)
        staged = _staged_spec(stage.sizes, spec, stage.path)
        stages.append(
            Stage(
                config=stage,
                spec=staged,
                model=_model(settings, staged, spec, _place_of(stage), plugins),
                objective=own if is_same else objective_of(stage.settings),
                draws_apart=is_unrolled(settings),
                transforms=make_transforms(
                    stage.settings.data.transforms,
                    image_size=staged["image_size"],
                    path=stage.where("data.transforms"),
                    plugins=ANY_MODULE,
                ),
            )
        )
    beside = tuple(stage for stage in stages if stage.objective is not own)
    return (*stages[:-1], dataclasses.replace(stages[-1], beside=beside))


def make_schedules(stages: Sequence[StageConfig]) -> optax.Schedule:
    """The learning rate of a run by step: schedule after schedule, see `schedule_spans`."""
    spans = schedule_spans(stages)
    schedules = []
    for span in spans:
        settings = span[0].settings
        with named(f"{span[0].path}.schedule" if span[0].has_schedule else "config.schedule"):
            schedules.append(
                make_schedule(
                    learning_rate=settings.optimizer.learning_rate,
                    total_steps=span[-1].until_step - span[0].from_step,
                    plugins=ANY_MODULE,
                    **dataclasses.asdict(settings.schedule),
                )
            )
    if len(schedules) == 1:
        return schedules[0]
    return optax.join_schedules(schedules, [span[0].from_step for span in spans[1:]])


def _staged_spec(fields: Mapping[str, Any], spec: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The model's spec with a stage's sizes."""
    largest, patch = spec["image_size"], spec["image"].get("patch_size", 1)
    size = fields.get("image_size", largest)
    if size != largest and not (0 < size < largest and size % patch == 0):
        multiples = f"multiples of the patch, {patch}, " if patch > 1 else "sizes from 1 "
        raise ValueError(
            f"{path}.image_size = {size}: allowed are {multiples}up to the model's own {largest} "
            "(config.model.image_size)"
        )
    rate = fields.get("patch_dropout", 0.0)
    if rate and "patch_size" not in spec["image"]:
        raise ValueError(
            f"{path}.patch_dropout = {rate}: {spec['image']['name']!r} has no patches to leave "
            "out; remove it, or choose a vit"
        )
    longest = spec["text"]["context_length"]
    length = fields.get("context_length", longest)
    if not 1 <= length <= longest:
        raise ValueError(
            f"{path}.context_length = {length}: allowed are 1 to {longest}, the rows of the "
            "text's positions (config.model.text.context_length)"
        )
    changes: dict[str, Any] = {"text": {"context_length": length}}
    if "image_size" in fields:
        changes["image_size"] = fields["image_size"]
    dropout = spec["image"].get("patch_dropout") or 0.0
    # A tower without patches has no such field; and equal specs share a compiled step.
    if fields.get("patch_dropout", dropout) != dropout:
        changes["image"] = {"patch_dropout": fields["patch_dropout"]}
    return merge(spec, changes)


def _model(
    settings: Settings,
    spec: Mapping[str, Any],
    own: Mapping[str, Any],
    path: str,
    plugins: Sequence[str],
) -> CLIP:
    """The module of a spec, over the parameters of the model's own size."""
    try:
        with named("config.model"):
            return build_model(
                spec,
                dtype=settings.dtype,
                tables_of=own,
                plugins=plugins,
            )
    except ValueError as error:
        if spec == own:
            raise  # it is the model that is wrong
        raise ValueError(f"{path}: {error}") from error


def check_same_parameters(stages: Sequence[Stage]) -> None:
    """Compares the parameters of every stage's module with those of the last one's.

    Raises:
        ValueError: names the stage, the field and the parameter that depends on it.
    """
    if len(stages) == 1:
        return
    *earlier, wanted = [_parameter_shapes(stage) for stage in stages]
    for stage, found in zip(stages, earlier, strict=False):
        if stages[-1].beside:  # which it holds for other stages' objectives
            own = {n: s for n, s in wanted.items() if n in found or not n.startswith(_OF_OBJECTIVE)}
        else:
            own = wanted
        names = (name for name in (*found, *own) if found.get(name) != own.get(name))
        if name := next(names, None):
            raise ValueError(_other_parameters(stage, name, found.get(name), wanted.get(name)))


def _parameter_shapes(stage: Stage) -> dict[str, tuple[int, ...]]:
    params = unbox(stage.abstract_variables["params"])
    return {name: x.shape for name, x in flatten_with_names(params)}


def _other_parameters(stage: Stage, name: str, found: Any, wanted: Any) -> str:
    was, would_be = ("absent" if x is None else x for x in (wanted, found))
    change = f"{name} is {was} and would be {would_be}"
    if name.startswith(_OF_OBJECTIVE):
        return (
            f"{stage.path}: parameters of {stage.config.where('objective')} depend on its sizes, "
            f"or are called as those of another stage's objective: {change}; make them of the "
            "model's own size in all stages, with names of their own"
        )
    is_text = name.startswith("text")
    tower, field = ("text", "context_length") if is_text else ("image", "image_size")
    return (
        f"{stage.path}.{field}: parameters of {stage.spec[tower]['name']!r} depend on it: "
        f"{change}. Leave it out of the stage, or choose towers that take several sizes: vit or "
        "efficientnet; causal_transformer, bidirectional_transformer or bert"
    )
