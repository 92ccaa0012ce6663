"""What a config file needs: the fields with their defaults, `:arg` strings, validation, `build`.

A config is an `ml_collections.ConfigDict` made by `get_config(arg=None)`. It starts from
`default_config()`, which writes every field out, so that each can be overridden on the command
line (`--config.optimizer.learning_rate=3e-4`), and it stops at `clipjax/experiment.py`: code below
takes plain arguments.
"""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

# Subtrees whose keys belong to the thing that is built from them, not to this schema: `build`
# and the model zoo check those.
FREE_FORM = ("model", "data.source", "data.transforms", "evals", "init", "target", "logical_axes")


def default_config() -> ConfigDict:
    """Returns every field of a config with its default."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 1024  # examples a step, over all devices
    config.total_steps = 10_000  # optimizer steps
    config.micro_batch_size = config_dict.placeholder(int)  # examples; None = the whole batch

    config.model = ConfigDict()
    # A row of clipjax.models.zoo; or `checkpoint`, for the model of config.init.checkpoint; or any
    # other name, with every field of the spec given.
    config.model.name = "ViT-B-32"
    config.model.image_size = config_dict.placeholder(int)  # pixels; None = as the row says
    config.model.image = ConfigDict({"patch_dropout": 0.0})  # fields that differ from the row
    config.model.text = ConfigDict({"context_length": config_dict.placeholder(int)})
    config.dtype = "bfloat16"  # of the computation; parameters and statistics are float32
    config.scan_layers = True  # one compiled layer, scanned; False unrolls
    config.remat = "dots"  # none | dots | full: what the backward pass computes again

    # Dicts {"until_step", "image_size", "context_length", "patch_dropout"}: smaller images, shorter
    # texts or fewer patches up to a step; then the model's own size. See docs/configs.md.
    config.stages = ()

    config.data = ConfigDict()
    config.data.source = ""  # kind:where[:split]; see docs/data.md
    config.data.transforms = ()  # of dicts with a name of clipjax.data.transforms.TRANSFORMS
    # None; or a dict of fields of `color_jitter`, which the devices then do instead of the workers,
    # on images of one size as they enter the model; {} takes the defaults.
    config.data.device_color_jitter = config_dict.placeholder(object)
    config.data.num_workers = 2  # a host, that decode and augment
    config.data.workers = "threads"  # threads | processes
    config.data.token_cache_bytes = 256 << 20  # a host, of ids of captions met before; 0 = none
    config.data.prefetch = 2  # batches made ahead
    config.data.max_bad_fraction = 0.001  # of unusable examples in a window, before it stops

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices an axis; -1 = the rest
    config.sharding = "zero1"  # replicated | zero1 | fsdp | tensor
    config.logical_axes = ()  # pairs (logical axis, mesh axis) that precede the sharding's table

    config.loss = ConfigDict()
    config.loss.name = "clip"  # clip | siglip
    config.loss.layout = "auto"  # auto | dense | gather | grid | ring
    config.loss.tile_size = config_dict.placeholder(int)  # columns a tile; None = chosen

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openai"  # openai | openclip | openclip_legacy | kernels | all
    config.optimizer.clip_norm = config_dict.placeholder(float)  # of the global gradient
    config.optimizer.mu_dtype = "float32"  # of the first moment
    config.optimizer.freeze = ()  # regular expressions of parameter names that stay fixed
    config.optimizer.lr_scale = ()  # pairs (regular expression, factor)
    config.optimizer.ema_decay = config_dict.placeholder(float)  # None = no average is kept

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # cosine | constant
    config.schedule.warmup_steps = 2000
    config.schedule.end_fraction = 0.0  # of the learning rate, at total_steps

    config.max_skipped_in_a_row = 5  # steps with a non-finite gradient, before the run stops

    config.evals = ConfigDict()  # name -> dict with a name of clipjax.evals.EVALS
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3})
    config.checkpoint.keep_every = config_dict.placeholder(int)  # steps that are never deleted
    config.log_every = 50  # steps
    config.tensorboard = True
    config.report = True  # report.html at the end
    config.hang_timeout_s = 1800.0  # no finished step in this time ends the process

    config.init = ConfigDict(
        {"checkpoint": ""}
    )  # parameters to start from; see docs/checkpoints.md
    config.init.lock_image = False  # LiT: the image tower stays as loaded
    config.init.rename = ()  # pairs (regular expression, replacement)
    config.init.drop = ()  # regular expressions of leaves that are left out
    config.init.initialise = ()  # regular expressions of leaves that keep their random start
    config.init.override = ()  # dotted keys of the model contract that may differ
    config.resume = ""  # another workdir whose newest checkpoint is continued
    config.allow_config_change = False  # resume although the recipe differs

    config.target = ConfigDict()  # metric -> published value; a run can be checked against it
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


def build(
    spec: Mapping[str, Any], table: Mapping[str, Any], *, path: str = "config", **runtime: Any
) -> Any:
    """Builds what a spec names: `table[spec["name"]](**rest_of_spec, **runtime)`.

    The constructor's signature is the schema. A name that holds a colon is imported instead of
    looked up (`"my_lab.towers:MyViT"`), which is how code out of this tree plugs in.

    Args:
        spec: a mapping with the key `name`; its other keys are keyword arguments.
        table: name -> callable.
        path: where the spec stands in the config, for messages.
        **runtime: arguments that come from the caller and not from the config.

    Raises:
        ValueError: an unknown name, an unknown key, or a missing one.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}.name is missing; allowed are {', '.join(sorted(table))}")
    constructor = _import(name, path) if ":" in name else table.get(name)
    if constructor is None:
        raise ValueError(
            f"{path}.name = {name!r} is unknown; allowed are {', '.join(sorted(table))}, "
            f"or module:Name of your own{hint(name, table)}"
        )
    parameters = inspect.signature(constructor).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        accepted = [k for k in parameters if k not in runtime and k not in ("parent", "name")]
        for key in arguments:
            if key not in accepted:
                raise ValueError(
                    f"{path}.{key} is not a field of {name!r}; "
                    f"its fields are {', '.join(accepted) or 'none'}{hint(key, accepted)}"
                )
        missing = [
            k
            for k, p in parameters.items()
            if p.default is p.empty
            and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
            and k not in arguments
            and k not in runtime
        ]
        if missing:
            raise ValueError(f"{path} ({name!r}) lacks {', '.join(missing)}; add it to the config")
        # A runtime argument that this constructor does not take is not for it.
        runtime = {k: v for k, v in runtime.items() if k in parameters}
    return constructor(**arguments, **runtime)


def _import(name: str, path: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}.name = {name!r} cannot be imported: {error}") from error


def validate(config: ConfigDict) -> None:
    """Checks keys, types and ranges of a config, before any device or file is touched.

    Raises:
        ValueError: what was found, what is allowed, and the config path.
    """
    _check_keys(config.to_dict(), default_config().to_dict(), prefix="")
    for path in ("batch_size", "total_steps", "log_every", "checkpoint.every_steps"):
        value = get_path(config, path)
        if value < 1:
            raise ValueError(f"config.{path} = {value}: must be at least 1")
    _check_choice(config, "dtype", ("float32", "bfloat16"))
    _check_choice(config, "remat", ("none", "dots", "full"))
    _check_choice(config, "optimizer.mu_dtype", ("float32", "bfloat16"))
    _check_choice(config, "data.workers", ("threads", "processes"))
    if not config.data.source:
        raise ValueError("config.data.source is empty; give kind:where[:split], see docs/data.md")
    sizes = [int(config.mesh[axis]) for axis in config.mesh]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            f"config.mesh = {config.mesh.to_dict()}: sizes are positive, one of them may be -1"
        )
    batch_axes = int(config.mesh.data), int(config.mesh.fsdp)
    if -1 not in batch_axes and config.batch_size % (batch_axes[0] * batch_axes[1]):
        raise ValueError(
            f"config.batch_size = {config.batch_size} does not divide over config.mesh data x fsdp "
            f"= {batch_axes[0]} x {batch_axes[1]}; choose a multiple of their product"
        )
    micro = config.micro_batch_size
    if micro is not None and (micro < 1 or config.batch_size % micro):
        raise ValueError(
            f"config.micro_batch_size = {micro} does not divide "
            f"config.batch_size = {config.batch_size}"
        )
    if config.schedule.warmup_steps >= config.total_steps:
        raise ValueError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} is not below "
            f"config.total_steps = {config.total_steps}; lower it, or train longer"
        )
    for name in config.evals:
        if "source" not in config.evals[name] or not config.evals[name].source:
            raise ValueError(f"config.evals.{name}.source is missing: the dataset to evaluate on")


def get_path(config: ConfigDict, path: str) -> Any:
    """Looks up a dotted path such as `optimizer.learning_rate`."""
    node: Any = config
    for key in path.split("."):
        node = node[key]
    return node


def _check_choice(config: ConfigDict, path: str, allowed: tuple[str, ...]) -> None:
    if get_path(config, path) not in allowed:
        raise ValueError(
            f"config.{path} = {get_path(config, path)!r}: allowed are {', '.join(allowed)}"
        )


def _check_keys(found: Mapping[str, Any], allowed: Mapping[str, Any], prefix: str) -> None:
    for key, value in found.items():
        path = f"{prefix}{key}"
        if key not in allowed:
            raise ValueError(
                f"config.{path} is unknown; allowed here are {', '.join(sorted(allowed))}"
                f"{hint(key, allowed)}"
            )
        if path in FREE_FORM:
            continue
        default = allowed[key]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(f"config.{path} = {value!r}: expected a group of fields")
            _check_keys(value, default, f"{path}.")
        elif not _same_type(value, default):
            raise ValueError(
                f"config.{path} = {value!r}: expected {type(default).__name__}, "
                f"found {type(value).__name__}"
            )
    for key in allowed:
        if key not in found:
            raise ValueError(
                f"config.{prefix}{key} is missing; start the config from "
                "clipjax.config.default_config()"
            )


def _same_type(value: Any, default: Any) -> bool:
    if default is None:
        return True  # a placeholder: ConfigDict itself holds its type
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))


def hint(key: str, known: Any) -> str:
    """The end of a message about an unknown key: what may have been meant, if anything is near."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def to_plain(value: Any) -> Any:
    """Turns a config to plain dicts, lists and scalars, as JSON holds them."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


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
