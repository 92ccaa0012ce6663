"""What a config file needs: the fields with their defaults, `:arg` strings, validation.

A config is an `ml_collections.ConfigDict` made by `get_config(arg=None)`. It starts from
`default_config()`, which writes every field out, so that each can be overridden on the command
line (`--config.optimizer.learning_rate=3e-4`), and it stops at `clipjax.experiment.resolve`: all
that follows takes what that gives.
"""

import ast
import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from ml_collections import ConfigDict, config_dict

from clipjax.config_fields import AVERAGE_FIELDS, EVAL_FIELDS, FIELDS, Settings
from clipjax.config_lengths import resolve_lengths
from clipjax.config_stages import (
    StageConfig,
    check_stages,
    schedule_spans,
    stage_configs,
)
from clipjax.lengths import Length
from clipjax.ranges import (
    Group,
    Number,
    check_known,
    hint,
    is_list,
    show,
    unknown_key,
)


def default_config() -> ConfigDict:
    """Returns every field of a config with its default; `FIELDS` says what each means and allows.

    One that None switches off is a placeholder or a reference: these take None and their type.
    """
    return _as_config(Settings())


def _as_config(group: Any) -> ConfigDict:
    config = ConfigDict()
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else ()
        if dataclasses.is_dataclass(value):
            value = _as_config(value)
        elif isinstance(field.metadata["field"].allowed, Length):  # a number, or a text
            value = config_dict.FieldReference(value, field_type=object)
        elif types.NoneType in kinds:
            kind = kinds[0] if kinds[0] in (int, float) else object
            value = config_dict.FieldReference(value, field_type=kind)
        elif bool in kinds:  # or a text
            value = config_dict.FieldReference(value, field_type=object)
        elif isinstance(value, Mapping):
            value = _free_group(value)
        config[field.name] = value
    return config


def _free_group(fields: Mapping[str, Any]) -> ConfigDict:
    """A group whose fields a row of the zoo has; None, as the row says, is a size."""
    config = ConfigDict()
    for name, value in fields.items():
        if isinstance(value, Mapping):
            value = _free_group(value)
        config[name] = config_dict.placeholder(int) if value is None else value
    return config


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses the part after the colon of `--config configs/x.py:batch_size=64,smoke`.

    Args:
        arg: `key=value` pairs and bare flags (which mean True), separated by commas, or None.
        **defaults: the accepted keys; a value is parsed to the type of its default.

    Returns:
        The defaults with the given values put in.

    Raises:
        ValueError: an unknown key, or a value of another type.
    """
    result = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, has_value, text = item.partition("=")
        key = key.strip()
        if key not in defaults:
            raise ValueError(
                f"config argument {key!r} is unknown; this config accepts "
                f"{', '.join(sorted(defaults)) or 'no arguments'}{hint(key, defaults)}"
            )
        if not has_value and not isinstance(defaults[key], bool):
            raise ValueError(f"config argument {key!r} needs a value: write {key}=...")
        result[key] = _parse_value(key, text, defaults[key]) if has_value else True
    return result


def _parse_value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
    except (ValueError, SyntaxError):
        value = text
    if default is not None and type(value) is not type(default):
        raise ValueError(
            f"config argument {key}={text}: expected {type(default).__name__}, "
            f"found {type(value).__name__}"
        )
    return value


def validate(
    config: ConfigDict,
    *,
    needs_data: bool = True,
    count_examples: Callable[[Any, str], int] | None = None,
) -> Settings:
    """Checks keys, types and ranges of a config, before any device or file is touched.

    What the parts of a config (model, transforms, evaluations) may hold, their constructors know:
    `clipjax.experiment.resolve` asks them, too.

    Args:
        config: of `get_config`, with overrides.
        needs_data: whether config.data.source must be given.
        count_examples: counts those of a source, given where it stands; called where a length is
            in epochs.

    Returns:
        The config, typed, with every length in steps.

    Raises:
        ValueError: what was found, what is allowed, and the config path.
    """
    plain = to_plain(config)
    check_keys(plain, to_plain(default_config()), prefix="")
    _check_plain(plain, "config")
    _check_evals(plain["evals"])
    _check_averages(plain["optimizer"]["averages"])
    check_stages(plain["stages"])
    for name, value in plain["target"].items():
        for item in value if is_list(value) else (value,):
            Number().check(item, f"config.target.{name}")
    resolve_lengths(plain, count_examples)
    settings = _typed(Settings, plain)
    if needs_data and not settings.data.source:
        raise ValueError("config.data.source is empty; give kind:where[:split], see docs/data.md")
    check_together(settings)
    return settings


def check_together(settings: Settings) -> None:
    """Checks the fields that depend on one another.

    Raises:
        ValueError: names them, with their values.
    """
    mesh = settings.mesh
    sizes = dataclasses.asdict(mesh)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"config.mesh = {sizes}: one of the sizes may be -1")
    *earlier, own = stage_configs(settings)
    for stage in (own, *earlier):
        _check_batch(stage)
        loss = stage.settings.loss
        if loss.layout == "dense" and loss.tile_size is not None:
            raise ValueError(
                f"{stage.where('loss.tile_size')} = {loss.tile_size} and "
                f"{stage.where('loss.layout')} = 'dense', which has no tiles: set the first to "
                "None, or take another layout"
            )
    for span in schedule_spans((*earlier, own)):
        _check_schedule(span[0], span[-1].until_step - span[0].from_step)
    if settings.lora.rank and not settings.init.checkpoint:
        raise ValueError(
            f"config.lora.rank = {settings.lora.rank} adapts a model that has learned; give it by "
            "config.init.checkpoint, or set the rank to 0 to train a model anew"
        )
    if settings.lora.rank and not settings.lora.targets:
        raise ValueError(
            f"config.lora.rank = {settings.lora.rank} and config.lora.targets names no kernels; "
            "name some, or set the rank to 0"
        )
    if settings.init.lock_image and not settings.init.checkpoint:
        raise ValueError(
            "config.init.lock_image locks a loaded image tower; give config.init.checkpoint"
        )


def _check_batch(stage: StageConfig) -> None:
    settings, mesh = stage.settings, stage.settings.mesh
    where, size, micro = stage.where("batch_size"), settings.batch_size, settings.micro_batch_size
    if -1 not in (mesh.data, mesh.fsdp) and size % (mesh.data * mesh.fsdp):
        raise ValueError(
            f"{where} = {size} does not divide over config.mesh data x "
            f"fsdp = {mesh.data} x {mesh.fsdp}; choose a multiple of their product"
        )
    if micro is not None and size % micro:
        raise ValueError(
            f"{stage.where('micro_batch_size')} = {micro} does not divide {where} = {size}"
        )


def _check_schedule(stage: StageConfig, steps: int) -> None:
    """Checks the lengths of a schedule that begins with a stage and is so many steps long."""
    schedule, all_steps = stage.settings.schedule, stage.settings.total_steps
    length = f"config.total_steps = {steps}" if steps == all_steps else f"its stages' {steps} steps"
    warmup, cooldown = stage.where("schedule.warmup_steps"), stage.where("schedule.cooldown_steps")
    if schedule.warmup_steps >= steps:
        raise ValueError(
            f"{warmup} = {schedule.warmup_steps} is not below {length}; lower it, or train longer"
        )
    if schedule.warmup_steps + schedule.cooldown_steps > steps:
        raise ValueError(
            f"{cooldown} = {schedule.cooldown_steps} begins before the end of {warmup} = "
            f"{schedule.warmup_steps}: {length}; lower one of them, or train longer"
        )


def _typed(group: Any, plain: Mapping[str, Any]) -> Any:
    """A group of plain data as its dataclass; a list becomes a tuple."""
    values = {}
    for field in dataclasses.fields(group):
        value = plain[field.name]
        if dataclasses.is_dataclass(field.type):
            value = _typed(field.type, value)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return group(**values)


def _check_plain(value: Any, path: str) -> None:
    """Refuses what JSON does not hold: the config is stored with each checkpoint."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_plain(item, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} = {value}: expected a finite number; None switches off")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"{path} = {show(value)}: a config holds numbers, texts, True, False, None, and "
            f"tuples and dicts of these; found {type(value).__name__}"
        )


def _check_evals(evals: Mapping[str, Any]) -> None:
    for name, spec in evals.items():
        path = f"config.evals.{name}"
        Group("with `name` and `source`").check(spec, path)
        if not spec.get("source"):
            raise ValueError(f"{path}.source is missing: the dataset to evaluate on")
        for key, field in EVAL_FIELDS.items():
            if key in spec:
                field.allowed.check(spec[key], f"{path}.{key}")


def _check_averages(averages: Sequence[Mapping[str, Any]]) -> None:
    names: list[str] = ["params", "ema_params"]  # of a checkpoint's own
    for number, average in enumerate(averages):
        path = f"config.optimizer.averages[{number}]"
        check_known(average, AVERAGE_FIELDS, path, ["name"])
        if len(average) != 2:
            raise ValueError(
                f"{path} = {show(dict(average))}: beside its name it has either a decay or a "
                "half_life"
            )
        if average["name"] in names:
            raise ValueError(f"{path}.name = {average['name']!r} is taken; give it another")
        names.append(average["name"])


def check_keys(found: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> None:
    """Compares the names of a group with the defaults', and each value with its field's rule."""
    for key, value in found.items():
        path = f"{prefix}{key}"
        if key not in defaults:
            raise ValueError(unknown_key(f"config.{path}", defaults))
        if path in FIELDS:
            FIELDS[path].allowed.check(value, f"config.{path}")
        elif not isinstance(value, Mapping):
            raise ValueError(
                f"config.{path} = {show(value)}: expected a group of fields: "
                f"{', '.join(defaults[key])}"
            )
        else:
            check_keys(value, defaults[key], f"{path}.")
    for key in defaults:
        if key not in found:
            raise ValueError(
                f"config.{prefix}{key} is missing; start the config from "
                "clipjax.config.default_config()"
            )


def to_plain(value: Any) -> Any:
    """Turns a config to plain dicts, lists and scalars, as JSON holds them."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def stored(settings: Settings) -> dict[str, Any]:
    """The config as a checkpoint holds it: empty groups of the model are left out."""
    plain = to_plain(dataclasses.asdict(settings))
    plain["model"] = {key: value for key, value in plain["model"].items() if value != {}}
    return plain


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested mappings; None in `changes` means "as in the base"."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            inner = merged.get(key)
            merged[key] = merge(inner if isinstance(inner, Mapping) else {}, value)
        elif value is not None or key not in merged:
            merged[key] = value
    return merged


def iterate_leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from iterate_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
