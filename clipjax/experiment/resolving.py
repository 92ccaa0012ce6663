"""What a config decides, found once: the only reader of a config, and all that follows takes it."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipjax import building, partitioning
from clipjax.building import ANY_MODULE, check_plugins, check_spec, outside_names
from clipjax.checkpoint import (
    Choice,
    DamagedCheckpointError,
    check_model,
    choose_step,
    digest,
    spec_in,
)
from clipjax.config import check_together, stored, validate
from clipjax.config_fields import EVAL_FIELDS, Settings
from clipjax.config_stages import StageConfig, stage_configs
from clipjax.data.images.naflex import make_preprocess
from clipjax.data.sources import make_source
from clipjax.data.storage.files import local_path
from clipjax.encoding.prompts import stored_templates
from clipjax.encoding.templates import load_templates
from clipjax.evals import EVALS
from clipjax.experiment.stages import Stage, make_stages
from clipjax.inference.loading import load
from clipjax.inference.model import Model
from clipjax.layers.color_jitter import ColorJitter
from clipjax.losses import LOSSES, PAIR_RULES, make_loss
from clipjax.losses.objectives import PairObjective, check_objective, make_objective
from clipjax.models import resolve_spec
from clipjax.models.clip import CLIP
from clipjax.ranges import check_known, named
from clipjax.redaction import redact_tree
from clipjax.tokenizers import TOKENIZERS
from clipjax.trackers import check_trackers

CHECKPOINT_MODEL = "checkpoint"
MOUNT = "mount the bucket, and give the folder that it is mounted at"
# What an evaluation is given besides its fields in the config.
EVAL_RUNTIME = (
    "name", "source", "encode_image_fn", "encode_text_fn", "logit_scale_fn", "logit_bias_fn",
    "run_prompts", "preprocess", "tokenizer", "mesh", "weights_sha256",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """All that a config decides. No device is touched; data is opened only to count an epoch.

    Attributes:
        settings: the config, typed and grouped as it is written.
        stages: in their order; the last one is the model's own size.
        rules: of the sharding.
        plugins: modules that the names in the model's spec may import.
        init: the checkpoint to start from; None for a random start, or a config that is not run.
        color_jitter: of the devices; None where they do none.
        config: as plain data, without credentials: what a checkpoint holds.
        config_sha256: of it.
    """

    settings: Settings
    stages: tuple[Stage, ...]
    rules: partitioning.ShardingRules
    plugins: tuple[str, ...]
    init: Choice | None
    color_jitter: ColorJitter | None
    config: Mapping[str, Any]
    config_sha256: str

    @property
    def spec(self) -> dict[str, Any]:
        """The model's spec, whole."""
        return self.stages[-1].spec

    @property
    def model(self) -> CLIP:
        """The two towers."""
        return self.stages[-1].model

    def under(self, settings: Settings) -> "Resolved":
        """The same model, from the same checkpoint, under other settings.

        Raises:
            ValueError: the settings do not go together.
        """
        check_together(settings)
        return _resolve(settings, self.spec, self.plugins, self.init)


def resolve(
    config: ConfigDict, *, to_run: bool = True, workdir: str | os.PathLike[str] | None = None
) -> Resolved:
    """Decides all that a config says, and checks all of it that needs neither data nor a device.

    Args:
        config: of `get_config`, with overrides.
        to_run: whether it is to be run: its data is then named, and the checkpoint that it starts
            from is there. A plan needs neither.
        workdir: of the run: one that has saved goes on although the checkpoint that it once started
            from is gone.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    settings = validate(config, needs_data=to_run, count_examples=_count_examples)
    if settings.resume and to_run:
        local_path(settings.resume, way=f"{MOUNT} as config.resume")
    check_trackers(settings.trackers, to_run=to_run)
    plugins = _plugins(settings)
    init = None
    if settings.init.checkpoint and (to_run or settings.model.get("name") == CHECKPOINT_MODEL):
        with named("config.init.checkpoint"):
            init = _starts_from(settings.init.checkpoint, workdir)
    return _resolve(settings, _spec(settings, init, plugins), plugins, init)


def _starts_from(path: str, workdir: str | os.PathLike[str] | None) -> Choice:
    """The step of config.init.checkpoint; where it is no more, the own one of a run that has saved.

    Chosen once: another run may save a newer one meanwhile.
    """
    try:
        found = choose_step(path)
        _ = found.manifest  # it has to be whole
        return found
    except (ValueError, OSError, DamagedCheckpointError) as error:
        if workdir is None:
            raise
        try:
            own = choose_step(workdir)
        except ValueError:
            raise error from None
        logging.warning(
            "%s. The run needs it no more: it goes on from its own %s", error, own.step_dir
        )
        return own


def _resolve(
    settings: Settings, spec: Mapping[str, Any], plugins: tuple[str, ...], init: Choice | None
) -> Resolved:
    rules = _rules(settings)
    color_jitter = _color_jitter(settings, spec)
    for stage in stage_configs(settings):
        path = stage.where("loss.name").removesuffix(".name")
        building.resolve(stage.settings.loss.name, LOSSES, path=path, plugins=ANY_MODULE)
        _check_objective(stage)
        _check_bias(stage, spec)
    stages = make_stages(settings, spec, lambda own: make_objective_of(own, spec), plugins=plugins)
    _check_model_parts(spec, plugins)
    _check_evals(settings)
    config = redact_tree({**stored(settings), "evals": _stored_evals(settings.evals)})
    return Resolved(
        settings=settings,
        stages=stages,
        rules=rules,
        plugins=plugins,
        init=init,
        color_jitter=color_jitter,
        config=config,
        config_sha256=digest(config),
    )


def _count_examples(source: Any, path: str) -> int:
    """How many examples an epoch has."""
    with named(path):
        return len(make_source(source, path=path, plugins=ANY_MODULE))


def _rules(settings: Settings) -> partitioning.ShardingRules:
    """The table that config.sharding names, behind config.logical_axes."""
    table: str | partitioning.ShardingRules = settings.sharding
    if ":" in settings.sharding:
        table = building.made_by(
            settings.sharding, partitioning.ShardingRules, path="config", key="sharding"
        )
    with named("config"):
        return partitioning.rules_of(table, settings.logical_axes)


def _plugins(settings: Settings) -> tuple[str, ...]:
    """What the names of the model's spec may import: config.plugins, and what the config names.

    A spec may be that of config.init.checkpoint with changes of the config's: it is not enough that
    it comes out of a config.
    """
    modules = check_plugins(settings.plugins, path="config.plugins")
    return (*modules, *(name for _, name in outside_names(settings.model)))


def _spec(settings: Settings, init: Choice | None, plugins: tuple[str, ...]) -> dict[str, Any]:
    """The whole spec of config.model: a row with changes, or a checkpoint's."""
    model = dict(settings.model)
    if model.get("name") != CHECKPOINT_MODEL:
        with named("config"):
            return resolve_spec(model)
    if init is None:
        raise ValueError(
            f"config.model.name = {CHECKPOINT_MODEL!r} needs config.init.checkpoint: the folder of "
            "the model to start from; or name a row of the zoo (`clipjax models` lists them)"
        )
    del model["name"]
    file = (model.get("tokenizer") or {}).get("model")
    found = spec_in(init.step_dir, init.manifest.contract, plugins=plugins, tokenizer=file)
    check_model(init.step_dir, init.manifest, found, plugins=plugins)
    with named("config"):
        return resolve_spec(model, base=found)


def _check_model_parts(spec: Mapping[str, Any], plugins: tuple[str, ...]) -> None:
    """Checks tokenizer and preprocessing, up to what their files say."""
    check_spec(
        spec["tokenizer"],
        TOKENIZERS,
        path="config.model.tokenizer",
        plugins=plugins,
        runtime=("context_length",),
    )
    with named("config.model"):
        make_preprocess(spec)


def make_objective_of(settings: Settings, spec: Mapping[str, Any], mesh: Mesh | None = None) -> Any:
    """Builds config.objective over config.loss."""
    # A model that computes in float32 is not to be rounded behind its last layer.
    dtype = "float32" if settings.dtype == "float32" else "auto"
    of_pairs = settings.loss.name in PAIR_RULES
    with named("config.loss"):
        pair_loss = make_loss(
            settings.loss.name,
            mesh=mesh,
            layout=settings.loss.layout,
            tile_size=settings.loss.tile_size,
            dtype=dtype if settings.loss.dtype == "auto" and of_pairs else settings.loss.dtype,
            positives=settings.loss.positives,
            plugins=ANY_MODULE,
        )
    return make_objective(
        settings.objective,
        path="config.objective",
        plugins=ANY_MODULE,
        pair_loss=pair_loss,
        vocab_size=spec["text"]["vocab_size"],
        dtype=jnp.dtype(settings.dtype),
        open_model=functools.partial(_opened, tuple(settings.plugins)),
    )


@functools.lru_cache(maxsize=2)
def _opened(plugins: tuple[str, ...], path: str) -> Model:
    """A model beside that of the config, such as a teacher."""
    try:
        return load(path, plugins=plugins)
    except (OSError, ValueError) as error:
        raise ValueError(f"config.objective names {path!r}: {error}") from error


def _check_objective(stage: StageConfig) -> None:
    """Refuses what is for a loss of pairs alone, where the objective is another."""
    settings, path = stage.settings, stage.where("objective")
    constructor = check_objective(settings.objective, path=path, plugins=ANY_MODULE)
    micro, where = settings.micro_batch_size, stage.where("micro_batch_size")
    if constructor is not PairObjective and micro not in (None, settings.batch_size):
        raise ValueError(
            f"{where} = {micro} and {path}.name = {settings.objective['name']!r}: "
            f"gradient caching is exact for losses of pairs only; set {where} to "
            f"None, or {path} to {{'name': 'pair'}}"
        )
    positives, where = settings.loss.positives, stage.where("loss.positives")
    if constructor is not PairObjective and positives != "own":
        raise ValueError(
            f"{where} = {positives!r} and {path}.name = "
            f"{settings.objective['name']!r}: only the objective of pairs hands the loss its "
            f"captions; set {where} to 'own', or {path} to {{'name': 'pair'}}"
        )


def _check_evals(settings: Settings) -> None:
    for key, fields in settings.evals.items():
        spec = {"name": key, **fields}
        spec = {field: value for field, value in spec.items() if field not in EVAL_FIELDS}
        path = f"config.evals.{key}"
        check_spec(
            spec,
            EVALS,
            path=path,
            plugins=ANY_MODULE,
            runtime=EVAL_RUNTIME,
            beside=("name", *EVAL_FIELDS),
        )
        if spec.get("templates") is not None:
            with named(f"{path}.templates"):
                load_templates(spec["templates"])


def _check_bias(stage: StageConfig, spec: Mapping[str, Any]) -> None:
    """Refuses a loss that has a bias on a model that has none: it would stay 0 without a word."""
    name = stage.settings.loss.name
    rule = PAIR_RULES.get(name)
    if rule is not None and rule.uses_bias and spec["logit_bias"] is None:
        raise ValueError(
            f"{stage.where('loss.name')} = {name!r} has a bias and config.model.logit_bias is "
            "None: set config.model.logit_bias = -10.0 and config.model.logit_scale = "
            "{'init': 10.0, 'max': None}, the start of arXiv:2303.15343, or config.loss.name = "
            "'clip'"
        )


def _color_jitter(settings: Settings, spec: Mapping[str, Any]) -> ColorJitter | None:
    """Builds config.data.device_color_jitter."""
    path = "config.data.device_color_jitter"
    fields = settings.data.device_color_jitter
    if fields is None:
        return None
    for number, transform in enumerate(settings.data.transforms):
        name = str(transform.get("name"))
        if name == "random_grayscale" or name.endswith(":RandomGrayscale"):
            raise ValueError(
                f"config.data.transforms[{number}] is {name!r} and {path} is set, which would "
                f"colour its pictures again; set {path}.grayscale to its probability in its place"
            )
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
    check_known(fields, ColorJitter.ranges, path)  # it has one form, and so no name
    floats: dict[str, Any] = {
        name: tuple(map(float, value)) if name == "saturation" else float(value)
        for name, value in fields.items()
    }
    return ColorJitter(**floats)


def _stored_evals(evals: Mapping[str, Any]) -> dict[str, Any]:
    """Writes config.evals as a checkpoint holds it: nothing in it is outside the checkpoint."""
    return {
        key: {**fields, "templates": stored_templates(fields["templates"])}
        if fields.get("templates") is not None
        else fields
        for key, fields in evals.items()
    }
