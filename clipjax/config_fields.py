"""Every field of a config: what it may hold, and what it means.

The defaults are `clipjax.config.default_config()`; a test holds the two, and the table in
docs/configs.md, together. Parts with fields of their own (towers, transforms, evaluations) have the
ranges of those in their constructors.
"""

from typing import NamedTuple

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


FIELDS: dict[str, Field] = {
    "seed": Field(whole(0, 2**63 - 1), "of the parameters, the order of the data and all draws"),
    "batch_size": Field(whole(), "examples a step, over all devices"),
    "total_steps": Field(whole(), "optimizer steps"),
    "micro_batch_size": Field(
        Optional(whole(), "the whole batch"),
        "examples whose towers run at once (gradient caching); divides `batch_size`",
    ),
    "model": Field(
        Group("see docs/models.md"),
        "`name`: a row of `clipjax models`; or `checkpoint`, for the model of `init.checkpoint`; "
        "or another name, with every field given. Other fields differ from the row's",
    ),
    "dtype": Field(DTYPES, "of the computation; parameters and statistics are float32"),
    "scan_layers": Field(Flag(), "one compiled layer, scanned; False unrolls"),
    "remat": Field(Choice(("none", "dots", "full")), "what the backward pass computes again"),
    "stages": Field(
        Many(Group("of a stage"), "dicts, see below"),
        "smaller images, shorter texts or fewer patches up to a step; then the model's own size",
    ),
    "data.source": Field(SPEC, "see docs/data.md"),
    "data.transforms": Field(
        Many(Group("with a `name`"), "dicts with a `name`"), "see docs/data.md"
    ),
    "data.device_color_jitter": Field(
        Optional(Group("of fields of `color_jitter`")),
        "the devices then do it instead of the workers, on images of one size as they enter the "
        "model; {} takes the defaults",
    ),
    "data.num_workers": Field(whole(0, 1024), "a host, that decode and augment"),
    "data.workers": Field(Choice(("threads", "processes")), "what the workers are"),
    "data.token_cache_bytes": Field(
        whole(0, 2**50), "a host, of ids of captions met before; 0 keeps none"
    ),
    "data.prefetch": Field(whole(0, 1024), "batches made ahead"),
    "data.max_bad_fraction": Field(
        FRACTION, "of unusable examples in a window, before the run stops"
    ),
    "mesh.data": Field(DEVICES, "devices that share the batch; one axis may be -1"),
    "mesh.fsdp": Field(DEVICES, "devices that share the batch and cut the parameters"),
    "mesh.tensor": Field(DEVICES, "devices that cut heads, MLPs and vocabulary"),
    "sharding": Field(
        Choice(("replicated", "zero1", "fsdp", "tensor")), "which table; see docs/sharding.md"
    ),
    "logical_axes": Field(
        Many(Free("a pair"), "pairs (logical axis, mesh axis)"), "rules that precede the table's"
    ),
    "loss.name": Field(Text("`clip` or `siglip`"), "softmax or sigmoid; see docs/losses.md"),
    "loss.layout": Field(
        Choice(("auto", "dense", "gather", "grid", "ring")), "how devices share the pairs"
    ),
    "loss.tile_size": Field(Optional(whole(), "chosen"), "columns a tile"),
    "optimizer.name": Field(Text("`adamw` or `lion`"), "the direction of a step"),
    "optimizer.learning_rate": Field(Number(0, 1e6), "at the end of the warm-up"),
    "optimizer.b1": Field(RATE, "decay of the first moment"),
    "optimizer.b2": Field(RATE, "decay of the second moment"),
    "optimizer.eps": Field(Number(1e-30, 1), "added to the root of the second moment"),
    "optimizer.weight_decay": Field(Number(0, 1e6), "decoupled, times the learning rate"),
    "optimizer.decay_mask": Field(
        Choice(("openai", "openclip", "openclip_legacy", "kernels", "all")), "what is decayed"
    ),
    "optimizer.clip_norm": Field(
        Optional(Number(1e-30, 1e30)), "largest norm of the global gradient"
    ),
    "optimizer.mu_dtype": Field(DTYPES, "of the first moment"),
    "optimizer.freeze": Field(PATTERNS, "parameters that stay fixed"),
    "optimizer.lr_scale": Field(
        Many(Pair(Pattern(), Number(0, 1e6)), "pairs (regular expression, factor from 0)"),
        "factors of the learning rate; the first that matches a parameter counts",
    ),
    "optimizer.ema_decay": Field(Optional(RATE), "of the averaged parameters"),
    "schedule.name": Field(Text("`cosine` or `constant`"), "after the warm-up"),
    "schedule.warmup_steps": Field(whole(0), "from 0 to the learning rate; below `total_steps`"),
    "schedule.end_fraction": Field(FRACTION, "of the learning rate, at `total_steps`"),
    "max_skipped_in_a_row": Field(
        whole(), "steps with a loss or gradient that is not finite, before the run stops"
    ),
    "evals": Field(Group("name -> dict with `name` and `source`"), "see docs/evaluation.md"),
    "checkpoint.every_steps": Field(whole(), "steps from one to the next"),
    "checkpoint.keep": Field(whole(), "of the newest"),
    "checkpoint.keep_every": Field(Optional(whole()), "multiples of this step are never deleted"),
    "log_every": Field(whole(), "steps"),
    "tensorboard": Field(Flag(), "event files beside metrics.jsonl"),
    "report": Field(Flag(), "report.html at the end"),
    "hang_timeout_s": Field(
        Optional(Number(0, 1e9, open_low=True)), "no finished step in this time ends the process"
    ),
    "init.checkpoint": Field(
        Text("a workdir or a step's folder; empty: a random start"),
        "parameters to start from; see docs/fine_tuning.md",
    ),
    "init.lock_image": Field(Flag(), "LiT: the image tower stays as loaded"),
    "init.rename": Field(
        Many(Pair(Pattern(), Text()), "pairs (regular expression, replacement)"),
        "of the checkpoint's leaves",
    ),
    "init.drop": Field(PATTERNS, "leaves of the checkpoint that are left out"),
    "init.initialise": Field(PATTERNS, "leaves of the model that keep their random start"),
    "init.override": Field(
        Many(Text(may_be_empty=False), "texts"), "dotted keys of the model contract that may differ"
    ),
    "plugins": Field(
        Many(Text(may_be_empty=False), "texts"),
        "modules of your own, `my_lab.towers`, that the model of `init.checkpoint` may name; what "
        "a config names itself needs no permission",
    ),
    "resume": Field(
        Text("a workdir; empty: this one"), "another run, whose newest checkpoint is continued"
    ),
    "allow_config_change": Field(Flag(), "resume although the recipe differs"),
    "target": Field(
        Group("metric -> number, or a tuple of numbers"), "published values that the recipe aims at"
    ),
}

# Of an entry of config.evals, besides those of the evaluation that its `name` is.
EVAL_FIELDS: dict[str, Field] = {
    "source": Field(SPEC, "the dataset to evaluate on"),
    "every_steps": Field(whole(0), "of training; 0 runs it at the end only"),
}
