"""Stages of a run: smaller images, shorter texts or fewer patches first (config.stages).

The parameters are those of the model's own size all along. A stage is another module over them: it
resizes learned image positions as it uses them and takes the first rows of the text's positions.
So state, checkpoints and evaluations know nothing of stages.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax.config import merge, to_plain
from clipjax.models import build_model
from clipjax.models.clip import CLIP
from clipjax.ranges import IMAGE_SIZE, RATE, Group, Rule, check_known, whole
from clipjax.train_state import init_variables
from clipjax.trees import flatten_with_names

FIELDS: dict[str, Rule] = {
    "until_step": whole(),
    "image_size": IMAGE_SIZE,
    "context_length": whole(),
    "patch_dropout": RATE,
}


class StageSpec(NamedTuple):
    """A stage as it was asked for.

    Attributes:
        until_step: the first step that is not of this stage.
        spec: the model spec with the stage's sizes.
        path: where it stands in the config, for messages.
    """

    until_step: int
    spec: dict[str, Any]
    path: str

    @property
    def sizes(self) -> str:
        """What the stage trains on, in words."""
        dropout = self.spec["image"].get("patch_dropout") or 0.0
        return (
            f"{self.spec['image_size']} pixels, {self.spec['text']['context_length']} tokens, "
            f"patch dropout {dropout:g}"
        )


def stage_specs(config: ConfigDict, spec: Mapping[str, Any]) -> tuple[StageSpec, ...]:
    """Resolves config.stages; the last one is the model's own size, up to the run's end.

    Args:
        config: with its stages, tuples of dicts with `until_step` and some of image_size,
            context_length and patch_dropout; what is left out is as the model has it.
        spec: the model's.

    Raises:
        ValueError: names the stage and its field, what was found and what is allowed.
    """
    stages: list[StageSpec] = []
    begin = 0
    for number, fields in enumerate(to_plain(config.stages)):
        path = f"config.stages[{number}]"
        Group("of a stage").check(fields, path)
        check_known(fields, FIELDS, path, ["until_step"])
        until = fields["until_step"]
        if not begin < until <= config.total_steps:
            raise ValueError(
                f"{path}.until_step = {until}: stages end one after the other, so above {begin}, "
                f"and not after config.total_steps = {config.total_steps}"
            )
        _check_image_size(fields, spec, path)
        _check_patch_dropout(fields, spec, path)
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
        stages.append(StageSpec(until, merge(spec, changes), path))
        begin = until
    return (*stages, StageSpec(config.total_steps, dict(spec), "config.model"))


def stage_models(
    config: ConfigDict, stages: Sequence[StageSpec], *, plugins: Sequence[str] = ()
) -> list[CLIP]:
    """Builds the module of every stage, all over the parameters of the last one's.

    Args:
        config: of the run.
        stages: of `stage_specs`.
        plugins: modules that the towers' names may import.

    Raises:
        ValueError: a tower that does not take a stage's size.
    """
    own = stages[-1].spec
    models = []
    for stage in stages:
        try:
            model = build_model(
                stage.spec,
                dtype=config.dtype,
                scan_layers=config.scan_layers,
                remat=config.remat,
                tables_of=own,
                plugins=plugins,
            )
        except ValueError as error:
            if stage.spec == own:
                raise  # it is the model that is wrong
            raise ValueError(f"{stage.path}: {error}") from error
        models.append(model)
    return models


def check_same_parameters(
    config: ConfigDict, stages: Sequence[StageSpec], models: Sequence[CLIP]
) -> None:
    """Compares the parameters of every stage's module with those of the last one's.

    Raises:
        ValueError: names the stage, the field and the parameter that depends on it.
    """
    if len(stages) > 1:
        shapes = [
            _parameter_shapes(model, batch_shapes(config, stage.spec))
            for model, stage in zip(models, stages, strict=True)
        ]
        for stage, found in zip(stages, shapes, strict=True):
            _check_same_parameters(stage, found, shapes[-1])


def batch_shapes(config: ConfigDict, spec: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of a model spec."""
    size, length = spec["image_size"], spec["text"]["context_length"]
    return {
        "image": jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32),
    }


def _parameter_shapes(model: CLIP, batch: Any) -> dict[str, tuple[int, ...]]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key: init_variables(model, key, batch), key)
    return {name: x.shape for name, x in flatten_with_names(nn.unbox(variables)["params"])}


def _check_same_parameters(
    stage: StageSpec, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for name in (*found, *wanted):
        if found.get(name) == wanted.get(name):
            continue
        is_text = name.startswith("text")
        tower, field = ("text", "context_length") if is_text else ("image", "image_size")
        raise ValueError(
            f"{stage.path}.{field}: parameters of {stage.spec[tower]['name']!r} depend on it: "
            f"{name} is {wanted.get(name, 'absent')} and would be {found.get(name, 'absent')}. "
            "Leave it out of the stage, or choose towers that take several sizes: vit or "
            "efficientnet; causal_transformer, bidirectional_transformer or bert"
        )


def _check_image_size(fields: Mapping[str, Any], spec: Mapping[str, Any], path: str) -> None:
    largest = spec["image_size"]
    size = fields.get("image_size", largest)
    patch = spec["image"].get("patch_size", 1)
    if size == largest or (0 < size < largest and size % patch == 0):
        return
    multiples = f"multiples of the patch, {patch}, " if patch > 1 else "sizes from 1 "
    raise ValueError(
        f"{path}.image_size = {size}: allowed are {multiples}up to the model's own {largest} "
        "(config.model.image_size)"
    )


def _check_patch_dropout(fields: Mapping[str, Any], spec: Mapping[str, Any], path: str) -> None:
    rate = fields.get("patch_dropout", 0.0)
    has_patches = "patch_size" in spec["image"]
    if rate and not has_patches:
        raise ValueError(
            f"{path}.patch_dropout = {rate}: {spec['image']['name']!r} has no patches to leave "
            "out; remove it, or choose a vit"
        )
