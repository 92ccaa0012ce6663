"""Every field of a config: its type and default, what it may hold, and what it means.

`Settings` is a config typed, grouped as it is written; `clipjax.config.default_config()` is made of
it. A test holds it and the table in docs/configs.md together. Parts with fields of their own
(towers, transforms, evaluations) have the ranges of those in their constructors.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from clipjax.lengths import Length
from clipjax.ranges import (
    FRACTION,
    PATTERNS,
    RATE,
    AnyOf,
    Choice,
    Flag,
    Free,
    Group,
    Many,
    Matching,
    Number,
    Optional,
    Pair,
    Pattern,
    Rule,
    Text,
    whole,
)

# Bounds such as 1e-30 and 1e6 keep float32 from rounding a number to 0 or to infinity.
DTYPES = Choice(("float32", "bfloat16"))
SPEC = AnyOf((Text("a SPEC, `kind:where[:split]`"), Group("a SPEC under `spec`, and its options")))
DEVICES = whole(1, also={-1: "the rest"})


class Field(NamedTuple):
    """What a field of a config may hold, and what it means."""

    allowed: Rule
    meaning: str


def _field(default: Any, allowed: Rule, meaning: str) -> Any:
    """A field of a group: a dict as default is copied."""
    about = {"field": Field(allowed, meaning)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def _fields_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yields (dotted path, field) of a group and of those inside it."""
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.type):
            yield from _fields_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.metadata["field"]


# Empty groups are there so that `config.model.tokenizer.model = ...` has a place; see `stored`.
_MODEL: dict[str, Any] = {
    "name": "ViT-B-32",
    "image_size": None,  # as the row says
    "image": {"patch_dropout": 0.0},
    "text": {"context_length": None},
    "tokenizer": {},
    "preprocess": {},
    "logit_scale": {},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """config.data: what a run trains on and how it is read."""

    source: str | Mapping[str, Any] = _field("", SPEC, "see docs/data.md")
    transforms: tuple[Any, ...] = _field(
        (), Many(Group("with a `name`"), "dicts with a `name`"), "see docs/data.md"
    )
    device_color_jitter: Mapping[str, Any] | None = _field(
        None,
        Optional(Group("of fields of `color_jitter`, and `grayscale`")),
        "the devices then do it instead of the workers, on images of one size as they enter the "
        "model; {} takes the defaults",
    )
    num_workers: int = _field(2, whole(0, 1024), "a host, that decode and augment")
    workers: str = _field("threads", Choice(("threads", "processes")), "what the workers are")
    token_cache_bytes: int = _field(
        256 << 20, whole(0, 2**50), "a host, of ids of captions met before; 0 keeps none"
    )
    prefetch: int = _field(2, whole(0, 1024), "batches made ahead")
    max_bad_fraction: float = _field(
        0.001, FRACTION, "of unusable examples in a window, before the run stops"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """config.mesh: devices along each axis."""

    data: int = _field(-1, DEVICES, "devices that share the batch; one axis may be -1")
    fsdp: int = _field(1, DEVICES, "devices that share the batch and cut the parameters")
    tensor: int = _field(1, DEVICES, "devices that cut heads, MLPs and vocabulary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """config.loss."""

    name: str = _field("clip", Text("`clip` or `siglip`"), "softmax or sigmoid; see docs/losses.md")
    layout: str = _field(
        "auto", Choice(("auto", "dense", "gather", "grid", "ring")), "how devices share the pairs"
    )
    tile_size: int | None = _field(
        None, Optional(whole(), "that of the platform"), "longest edge of a tile of logits"
    )
    dtype: str = _field(
        "auto",
        Choice(("auto", "float32", "bfloat16")),
        "that the embeddings are gathered and multiplied in; `auto` is float32 on a CPU and with "
        "`dtype = float32`, else bfloat16",
    )
    positives: str = _field(
        "own",
        Choice(("own", "equal_captions")),
        "what matches an example: its own pair, or also images and texts of equal captions; see "
        "docs/losses.md",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """config.optimizer."""

    name: str = _field(
        "adamw",
        Text("`adamw`, `lion`, `muon`, `lamb`, `adafactor` or `stableadamw`"),
        "the direction of a step; see below",
    )
    learning_rate: float = _field(5e-4, Number(0, 1e6), "at the end of the warm-up")
    b1: float = _field(0.9, RATE, "decay of the first moment")
    b2: float = _field(0.98, RATE, "decay of the second moment")
    eps: float = _field(1e-6, Number(1e-30, 1), "added to the root of the second moment")
    weight_decay: float = _field(0.2, Number(0, 1e6), "decoupled, times the learning rate")
    decay_mask: str = _field(
        "openai",
        Choice(("openai", "openclip", "openclip_legacy", "kernels", "all")),
        "what is decayed",
    )
    clip_norm: float | None = _field(
        None, Optional(Number(1e-30, 1e30)), "largest norm of the global gradient"
    )
    clip_update: bool = _field(
        False, Flag(), "StableAdamW: a tensor's update is divided by max(1, RMS of g / sqrt(v))"
    )
    mu_dtype: str = _field("float32", DTYPES, "of the first moment")
    muon_momentum: float = _field(0.95, RATE, "of the matrices under `muon`, Nesterov's")
    muon_rms: float | None = _field(
        0.2,
        Optional(Number(0, 1e6, open_low=True), "sqrt(max(1, outputs / inputs)) of each matrix"),
        "of a matrix's update under `muon`, before the learning rate: AdamW's is about 0.2",
    )
    freeze: tuple[Any, ...] = _field(
        (), PATTERNS, "parameters that stay fixed; of a stack, `/block_3/` is one block"
    )
    lr_scale: tuple[Any, ...] = _field(
        (),
        Many(Pair(Pattern(), Number(0, 1e6)), "pairs (regular expression, factor from 0)"),
        "factors of the learning rate; the first that matches a parameter counts",
    )
    layer_decay: tuple[Any, ...] = _field(
        (),
        Many(
            Pair(Pattern(), Number(0, 1, open_low=True)), "pairs (regular expression, decay to 1)"
        ),
        "of the learning rate from block to block, from the last one down; see below",
    )
    ema_decay: float | None = _field(None, Optional(RATE), "of the averaged parameters")
    averages: tuple[Any, ...] = _field(
        (),
        Many(Group("of an average"), "dicts, see below"),
        "other averages of the trained parameters, evaluated beside the model itself",
    )
    spike_factor: float | None = _field(
        None,
        Optional(Number(1, 1e30, open_low=True)),
        "a step is left out where its gradient's norm is above this times the mean of those before "
        "it; see docs/checkpoints.md",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """config.schedule: of the learning rate."""

    name: str = _field(
        "cosine",
        Text("`cosine`, `linear`, `polynomial`, `rsqrt` or `constant`"),
        "after the warm-up; see below",
    )
    warmup_steps: int = _field(2000, Length(), "from 0 to the learning rate; below `total_steps`")
    end_fraction: float = _field(
        0.0, FRACTION, "of the learning rate, at `total_steps`; of what the cooldown begins with"
    )
    cooldown_steps: int = _field(
        0, Length(), "at the end of `constant` or `rsqrt`; after the warm-up"
    )
    power: float = _field(1.0, Number(1e-3, 1e3), "of `polynomial`, and of the cooldown")
    timescale_steps: int = _field(10_000, Length(1), "of `rsqrt`: 1 / sqrt(1 + step / this)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """config.checkpoint: when a run saves and what it keeps."""

    every_steps: int = _field(1000, whole(), "steps from one to the next")
    keep: int = _field(
        3, whole(), "of the newest; with 1 there is none to go back to from a state that is bad"
    )
    keep_every: int | None = _field(
        None, Optional(whole()), "multiples of this step are never deleted"
    )
    best: str = _field(
        "",
        Text("a metric of `evals`, `zero_shot/imagenet/top1`; or empty"),
        "the step with its largest value is kept, too; `-` in front: the smallest",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings:
    """config.distributed: how long the processes of a run wait for one another."""

    join_timeout_s: int = _field(300, whole(1, 86_400), "for all to come, at the start")
    heartbeat_timeout_s: int = _field(
        30, whole(2, 86_400), "for a sign of life; then a process counts as lost"
    )
    end_timeout_s: int = _field(300, whole(1, 86_400), "for all to come to their end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitSettings:
    """config.init: the parameters to start from."""

    checkpoint: str = _field(
        "",
        Text("a workdir or a step's folder; empty: a random start"),
        "parameters to start from; see docs/fine_tuning.md",
    )
    lock_image: bool = _field(False, Flag(), "LiT: the image tower's weights stay as loaded")
    rename: tuple[Any, ...] = _field(
        (),
        Many(Pair(Pattern(), Text()), "pairs (regular expression, replacement)"),
        "of the checkpoint's leaves",
    )
    drop: tuple[Any, ...] = _field((), PATTERNS, "leaves of the checkpoint that are left out")
    initialise: tuple[Any, ...] = _field(
        (), PATTERNS, "leaves of the model that keep their random start"
    )
    vocabulary: str = _field(
        "same",
        Choice(("same", "carried")),
        "`carried`: the model has another tokenizer than the checkpoint, and the embeddings of the "
        "tokens that both know; see docs/fine_tuning.md",
    )
    override: tuple[Any, ...] = _field(
        (),
        Many(Text(may_be_empty=False), "texts"),
        "dotted keys of the model contract that may differ",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """config.lora: differences of low rank that are trained in place of the kernels."""

    rank: int = _field(0, whole(0, 4096), "of the differences; 0 trains the parameters themselves")
    alpha: float = _field(
        16.0, Number(0, 1e6, open_low=True), "the differences are scaled by alpha / rank"
    )
    targets: tuple[Any, ...] = _field(
        ("/blocks/",),
        Many(Pattern(), "regular expressions"),
        "kernels that get one, all of the towers' blocks by default; `/block_3/` is one block",
    )
    trained: tuple[Any, ...] = _field(
        (), PATTERNS, "other parameters that are trained, as they are; the rest is frozen"
    )

    @property
    def scale(self) -> float | None:
        """What the products of the factors are multiplied by; None without any."""
        return self.alpha / self.rank if self.rank else None


_SECONDS = Optional(Number(0, 1e9, open_low=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartTimeouts:
    """config.start_timeouts: seconds after which a start that hangs ends with 82."""

    data_s: float | None = _field(
        6 * 3600.0, _SECONDS, "to open, index and hash the data, in all processes"
    )
    restore_s: float | None = _field(3600.0, _SECONDS, "to verify and restore a checkpoint")
    compile_s: float | None = _field(3600.0, _SECONDS, "to compile the step of a stage")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole config, typed and grouped as it is written; the defaults are here."""

    seed: int = _field(
        0, whole(0, 2**63 - 1), "of the parameters, the order of the data and all draws"
    )
    batch_size: int = _field(1024, whole(), "examples a step, over all devices")
    total_steps: int = _field(10_000, Length(1), "the length of the run")
    micro_batch_size: int | None = _field(
        None,
        Optional(whole(), "the whole batch"),
        "examples whose towers run at once (gradient caching); divides `batch_size`",
    )
    model: Mapping[str, Any] = _field(
        _MODEL,
        Group("see docs/models.md"),
        "`name`: a row of `clipjax models`; or `checkpoint`, for the model of `init.checkpoint`; "
        "or another name, with every field given. Other fields differ from the row's",
    )
    dtype: str = _field(
        "bfloat16", DTYPES, "of the computation; parameters and statistics are float32"
    )
    scan_layers: bool | str = _field(
        "auto",
        AnyOf((Choice(("auto", "true", "false")), Flag())),
        "one compiled layer, scanned, or all layers unrolled, which moves less memory and compiles "
        "longer; `auto` as the platform has it best. A random start with False draws each layer "
        "by its own name",
    )
    scan_unroll: int = _field(1, whole(), "layers in one iteration of the scan")
    attention: str = _field(
        "auto",
        Choice(("auto", "xla", "cudnn", "pallas")),
        "how it is computed: by XLA, by a kernel for GPUs or one for TPUs; `auto` as the devices "
        "and the shapes allow",
    )
    remat: str = _field(
        "auto",
        Choice(("auto", "none", "names", "dots", "attention", "full")),
        "what the backward pass computes again, a row of docs/performance.md; `auto` takes the "
        "fastest that fits the devices' memory, and `none` where that is not known",
    )
    stages: tuple[Any, ...] = _field(
        (),
        Many(Group("of a stage"), "dicts, see below"),
        "other sizes, batches, rates, data, frozen parts or objective up to a step; then the "
        "config's own values",
    )
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    sharding: str = _field(
        "zero1",
        Choice(("replicated", "zero1", "fsdp", "tensor"), own=True),
        "which table; see docs/sharding.md",
    )
    logical_axes: tuple[Any, ...] = _field(
        (),
        Many(Free("a pair"), "pairs (logical axis, mesh axis)"),
        "rules that precede the table's",
    )
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    objective: Mapping[str, Any] = _field(
        {"name": "pair"},
        Group("with a `name`"),
        "what is minimised: `pair`, the loss of `loss`; `text_distillation`; or an objective of "
        "your own, `module:Name` and its options; see docs/losses.md",
    )
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)
    max_skipped_in_a_row: int = _field(
        5, whole(), "steps with a loss or gradient that is not finite, before the run stops"
    )
    max_skipped_fraction: float = _field(
        0.2,
        FRACTION,
        "of the last 100 steps that may be skipped, once `max_skipped_in_a_row` of them are",
    )
    evals: Mapping[str, Any] = _field(
        {}, Group("name -> dict with `name` and `source`"), "see docs/evaluation.md"
    )
    eval_time_fraction: float = _field(
        1.0,
        FRACTION,
        "of the run's time that evaluations at `every_steps` may take, before some are left out; "
        "1 is no limit",
    )
    checkpoint: CheckpointSettings = dataclasses.field(default_factory=CheckpointSettings)
    log_every: int = _field(50, whole(), "steps")
    diagnostics: bool = _field(
        False,
        Flag(),
        "metrics of gradients, updates and embeddings at logging steps, by a program of their own; "
        "see docs/losses.md",
    )
    collapse_steps: int = _field(
        1000, whole(), "with a loss at chance, before `diagnostics` warn of a collapse"
    )
    tensorboard: bool = _field(True, Flag(), "event files beside metrics.jsonl")
    trackers: tuple[Any, ...] = _field(
        (),
        Many(Group("with a `name`"), "dicts with a `name`"),
        "where metrics go besides: `wandb`, or `module:Name` of your own; see below",
    )
    report: bool = _field(True, Flag(), "report.html at the end")
    hang_timeout_s: float | None = _field(
        1800.0,
        _SECONDS,
        "no finished step in this time ends the process",
    )
    distributed: DistributedSettings = dataclasses.field(default_factory=DistributedSettings)
    start_timeouts: StartTimeouts = dataclasses.field(default_factory=StartTimeouts)
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    init: InitSettings = dataclasses.field(default_factory=InitSettings)
    plugins: tuple[Any, ...] = _field(
        (),
        Many(Text(may_be_empty=False), "texts"),
        "modules of your own, `my_lab.towers`, that the model of `init.checkpoint` may name; what "
        "a config names itself needs no permission",
    )
    resume: str = _field(
        "", Text("a workdir; empty: this one"), "another run, whose newest checkpoint is continued"
    )
    allow_config_change: bool = _field(False, Flag(), "resume although the recipe differs")
    target: Mapping[str, Any] = _field(
        {},
        Group("metric -> number, or a tuple of numbers"),
        "published values that the recipe aims at",
    )


FIELDS: dict[str, Field] = dict(_fields_of(Settings))

HALF_LIFE = Length(1)
# Of an element of config.optimizer.averages: its name, and one of the others.
AVERAGE_FIELDS: dict[str, Rule] = {
    "name": Matching(r"[a-z][a-z0-9_]{0,30}", "small letters, digits and _"),
    "decay": RATE,
    "half_life": HALF_LIFE,
}

# Of an entry of config.evals, besides those of the evaluation that its `name` is.
EVAL_FIELDS: dict[str, Field] = {
    "source": Field(SPEC, "the dataset to evaluate on"),
    "every_steps": Field(whole(0), "of training; 0 runs it at the end only"),
}
