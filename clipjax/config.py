"""What a config file needs: the fields with their defaults, `:arg` strings, validation.

A config is an `ml_collections.ConfigDict` made by `get_config(arg=None)`. It starts from
`default_config()`, which writes every field out, so that each can be overridden on the command
line (`--config.optimizer.learning_rate=3e-4`), and it stops at `clipjax/experiment.py`: code below
takes plain arguments.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from clipjax.config_fields import EVAL_FIELDS, FIELDS
from clipjax.ranges import Group, Number, hint, is_list, show, unknown_key


def default_config() -> ConfigDict:
    """Returns every field of a config with its default; `FIELDS` says what each means and allows.

    One that None switches off is a placeholder or a reference: these take None and their type.
    """
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 1024
    config.total_steps = 10_000
    config.micro_batch_size = config_dict.placeholder(int)

    config.model = ConfigDict()
    config.model.name = "ViT-B-32"
    config.model.image_size = config_dict.placeholder(int)  # None: as the row says
    config.model.image = ConfigDict({"patch_dropout": 0.0})
    config.model.text = ConfigDict({"context_length": config_dict.placeholder(int)})
    # Empty, so that `config.model.tokenizer.model = ...` has a place; see `stored`.
    config.model.tokenizer = ConfigDict()
    config.model.preprocess = ConfigDict()
    config.model.logit_scale = ConfigDict()
    config.dtype = "bfloat16"
    config.scan_layers = True
    config.remat = "dots"
    config.stages = ()

    config.data = ConfigDict()
    config.data.source = ""
    config.data.transforms = ()
    config.data.device_color_jitter = config_dict.placeholder(object)
    config.data.num_workers = 2
    config.data.workers = "threads"
    config.data.token_cache_bytes = 256 << 20
    config.data.prefetch = 2
    config.data.max_bad_fraction = 0.001

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = "zero1"
    config.logical_axes = ()

    config.loss = ConfigDict()
    config.loss.name = "clip"
    config.loss.layout = "auto"
    config.loss.tile_size = config_dict.placeholder(int)

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openai"
    config.optimizer.clip_norm = config_dict.placeholder(float)
    config.optimizer.mu_dtype = "float32"
    config.optimizer.freeze = ()
    config.optimizer.lr_scale = ()
    config.optimizer.ema_decay = config_dict.placeholder(float)

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 2000
    config.schedule.end_fraction = 0.0

    config.max_skipped_in_a_row = 5

    config.evals = ConfigDict()
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3})
    config.checkpoint.keep_every = config_dict.placeholder(int)
    config.log_every = 50
    config.tensorboard = True
    config.report = True
    config.hang_timeout_s = config_dict.FieldReference(1800.0, field_type=float)  # None is off

    config.init = ConfigDict({"checkpoint": ""})
    config.init.lock_image = False
    config.init.rename = ()
    config.init.drop = ()
    config.init.initialise = ()
    config.init.override = ()
    config.plugins = ()
    config.resume = ""
    config.allow_config_change = False

    config.target = ConfigDict()
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


def validate(config: ConfigDict) -> None:
    """Checks keys, types and ranges of a config, before any device or file is touched.

    What the parts of a config (model, transforms, evaluations) may hold, their constructors know:
    `clipjax.experiment.check_config` asks them, too.

    Raises:
        ValueError: what was found, what is allowed, and the config path.
    """
    plain = to_plain(config)
    _check_keys(plain, to_plain(default_config()), prefix="")
    _check_plain(plain, "config")
    _check_evals(plain["evals"])
    _check_numbers_of(plain["target"])
    if not config.data.source:
        raise ValueError("config.data.source is empty; give kind:where[:split], see docs/data.md")
    sizes = list(plain["mesh"].values())
    if sizes.count(-1) > 1:
        raise ValueError(f"config.mesh = {plain['mesh']}: one of the sizes may be -1")
    batch_axes = config.mesh.data, config.mesh.fsdp
    if -1 not in batch_axes and config.batch_size % (batch_axes[0] * batch_axes[1]):
        raise ValueError(
            f"config.batch_size = {config.batch_size} does not divide over config.mesh data x fsdp "
            f"= {batch_axes[0]} x {batch_axes[1]}; choose a multiple of their product"
        )
    micro = config.micro_batch_size
    if micro is not None and config.batch_size % micro:
        raise ValueError(
            f"config.micro_batch_size = {micro} does not divide "
            f"config.batch_size = {config.batch_size}"
        )
    if config.schedule.warmup_steps >= config.total_steps:
        raise ValueError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} is not below "
            f"config.total_steps = {config.total_steps}; lower it, or train longer"
        )
    if config.loss.layout == "dense" and config.loss.tile_size is not None:
        raise ValueError(
            f"config.loss.tile_size = {config.loss.tile_size} and config.loss.layout = 'dense', "
            "which has no tiles: set the first to None, or take another layout"
        )
    if config.init.lock_image and not config.init.checkpoint:
        raise ValueError(
            "config.init.lock_image locks a loaded image tower; give config.init.checkpoint"
        )


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


def _check_numbers_of(target: Mapping[str, Any]) -> None:
    for name, value in target.items():
        for item in value if is_list(value) else (value,):
            Number().check(item, f"config.target.{name}")


def _check_keys(found: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> None:
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
            _check_keys(value, defaults[key], f"{path}.")
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


def stored(config: ConfigDict) -> dict[str, Any]:
    """The config as a checkpoint holds it: empty groups of the model are left out."""
    plain = to_plain(config)
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
