"""What would make a step fit: a model of its memory, and the settings to try, cheapest first.

The model counts what a step is known to keep. It is right to some ten per cent, which is enough to
choose what to compile next; whether a step fits, only the compiler says.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.plan.model_flops import num_image_tokens

# Elements that the backward pass is left per token and block, in units of (width, mlp_dim). "dots"
# keeps the block's input and the products qkv, out and fc; "full" the input alone; "none" also what
# lies between: both norms, the mixed heads, the activation's input and output.
KEPT = {"none": (9.0, 3.0), "dots": (5.0, 1.0), "full": (1.0, 0.0)}
# Forward FLOPs that are computed again, as a share of the blocks' products, in the same order: all
# but the last product of a block, whose value no gradient needs.
REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What may be changed about a step without changing what it computes.

    Attributes:
        remat: config.remat.
        micro_batches: of gradient caching; 1 is the whole batch at once.
        sharding: config.sharding.
        fsdp: config.mesh.fsdp.
    """

    remat: str
    micro_batches: int
    sharding: str
    fsdp: int

    def flags(self, batch_size: int, current: "Setting | None" = None) -> tuple[str, ...]:
        """The overrides that make a config so; only those that differ from a current setting."""
        micro = str(batch_size // self.micro_batches) if self.micro_batches > 1 else "None"
        flags = {
            "remat": f"--config.remat={self.remat}",
            "micro_batches": f"--config.micro_batch_size={micro}",
            "sharding": f"--config.sharding={self.sharding}",
            "fsdp": f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp}",
        }
        if current is not None:
            flags = {k: v for k, v in flags.items() if getattr(self, k) != getattr(current, k)}
            if current.sharding == "tensor" != self.sharding:
                flags["fsdp"] = f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp}"
                flags["tensor"] = "--config.mesh.tensor=1"
        return tuple(flags.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Sizes that the memory of a step follows from.

    Attributes:
        spec: the model spec.
        num_parameters: of the model.
        optimizer_bytes: of the optimizer's state per parameter.
        batch_per_device: examples.
        num_devices: of the mesh.
        item_bytes: of the dtype that the towers compute in.
        zero_share: of the optimizer's state that a device holds under ZeRO-1; None is its even
            part, 1 / num_devices.
    """

    spec: Mapping[str, Any]
    num_parameters: int
    optimizer_bytes: float
    batch_per_device: float
    num_devices: int
    item_bytes: int
    zero_share: float | None = None


def predicted_bytes(step: Step, setting: Setting) -> float:
    """HBM of one device that a step needs under a setting, roughly."""
    return state_bytes(step, setting) + activation_bytes(step, setting)


def state_bytes(step: Step, setting: Setting) -> float:
    """Parameters, optimizer state, gradients and the copy that the towers compute with."""
    parameters = step.num_parameters
    if setting.sharding == "fsdp":
        per_parameter = 4 + step.optimizer_bytes + 4 + step.item_bytes
        # The token embedding is gathered whole, as it is looked up in.
        table = step.spec["text"].get("vocab_size", 0) * step.spec["text"]["width"] * 8
        return parameters * per_parameter / setting.fsdp + table
    optimizer = step.optimizer_bytes
    if setting.sharding in ("zero1", "tensor"):
        optimizer *= 1 / step.num_devices if step.zero_share is None else step.zero_share
    return parameters * (4 + optimizer + 4 + step.item_bytes)


def activation_bytes(step: Step, setting: Setting) -> float:
    """What the backward pass is left by all blocks, and the working set of one."""
    examples = step.batch_per_device / setting.micro_batches
    widths, mlps = KEPT[setting.remat]
    kept = working = 0.0
    for tower, tokens in blocks_of(step.spec):
        width, mlp, heads = tower["width"], tower["mlp_dim"], tower["num_heads"]
        scores = heads * tokens**2
        one = tokens * (widths * width + mlps * mlp) * step.item_bytes
        if setting.remat == "none":
            one += scores * (4 + step.item_bytes)
        kept += tower["depth"] * one
        block = 3 * 4 * scores + tokens * (12 * width + 3 * mlp) * step.item_bytes
        working = max(working, block)
    return examples * (kept + working)


def blocks_of(spec: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The towers that are stacks of transformer blocks, each with its number of tokens."""
    if "patch_size" in spec["image"] and "depth" in spec["image"]:
        yield spec["image"], num_image_tokens(spec)
    yield spec["text"], spec["text"]["context_length"]


def extra_flops(spec: Mapping[str, Any], setting: Setting) -> float:
    """FLOPs that a setting adds, as a share of the model's: recomputed and encoded twice.

    A step is three forward passes' worth. Full remat repeats all products of a block but its last,
    `dots` the two of attention; gradient caching encodes everything once more.
    """
    extra = 1 / 3 if setting.micro_batches > 1 else 0.0
    repeated = total = 0.0
    for tower, tokens in blocks_of(spec):
        width, mlp = tower["width"], tower["mlp_dim"]
        scale = tower["depth"] * tokens
        scores = 2 * tokens * width
        total += scale * (8 * width**2 + 4 * width * mlp + 2 * scores)
        if setting.remat == "full":
            repeated += scale * (8 * width**2 + 2 * width * mlp + 2 * scores)
        elif setting.remat == "dots":
            repeated += scale * 2 * scores
    return extra + repeated / (3 * total)


def settings(step: Step, current: Setting, fsdp_sizes: tuple[int, ...]) -> list[Setting]:
    """The settings worth trying, the one of the config among them, least extra FLOPs first."""
    shardings = [("zero1", 1), *(("fsdp", size) for size in fsdp_sizes)]
    if (current.sharding, current.fsdp) not in shardings:
        shardings.insert(0, (current.sharding, current.fsdp))
    found = [
        Setting(remat=remat, micro_batches=count, sharding=sharding, fsdp=fsdp)
        for remat in REMAT_POLICIES
        for count in _micro_batches(step)
        for sharding, fsdp in shardings
    ]
    return sorted(found, key=lambda s: (round(extra_flops(step.spec, s), 3), s != current))


def _micro_batches(step: Step) -> list[int]:
    counts = [1]
    while counts[-1] < 16 and step.batch_per_device % (2 * counts[-1]) == 0:
        counts.append(2 * counts[-1])
    return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """The recomputation to prefer: remat first, micro-batches where no policy fits the whole batch.

    Attributes:
        setting: the cheapest that fits; None if none should.
        predicted_bytes: HBM of one device under it, by the model.
        extra_flops: its price, as a share of the model's FLOPs.
        refused: cheaper settings and the bytes that they should need, dearest last.
    """

    setting: Setting | None
    predicted_bytes: float
    extra_flops: float
    refused: tuple[tuple[Setting, float], ...]


def describes(spec: Mapping[str, Any]) -> bool:
    """Whether the model knows both towers; it does not know a ResNet's."""
    return len(list(blocks_of(spec))) == 2


def prefer(
    step: Step, current: Setting, *, needed_bytes: float, capacity: float, fits: bool
) -> Preference:
    """Chooses remat and micro-batches under the current sharding, least extra FLOPs first.

    Of the current setting the compiler's word counts, of the others the model's, scaled to it. The
    policy `none` is not proposed: for a hundredth of the FLOPs `dots` keeps and moves far less.
    """
    scale = needed_bytes / predicted_bytes(step, current)
    options = {
        dataclasses.replace(current, remat=remat, micro_batches=count): None
        for remat in ("dots", "full")
        for count in (*_micro_batches(step), current.micro_batches)
    } | {current: None}
    refused: list[Any] = []
    for setting in sorted(options, key=lambda s: recomputation_order(step.spec, s)):
        predicted = scale * predicted_bytes(step, setting)
        if fits if setting == current else predicted < 0.95 * capacity:
            price = extra_flops(step.spec, setting)
            return Preference(
                setting=setting,
                predicted_bytes=predicted,
                extra_flops=price,
                refused=tuple(refused),
            )
        refused.append((setting, predicted))
    return Preference(setting=None, predicted_bytes=0, extra_flops=0, refused=tuple(refused))


def recomputation_order(spec: Mapping[str, Any], setting: Setting) -> tuple[int, int, float]:
    """Sorts by extra FLOPs; of those within 5 % of the model's, fewer micro-batches first."""
    price = extra_flops(spec, setting)
    return round(price / 0.05), setting.micro_batches, price


def what_fits(
    step: Step,
    current: Setting,
    *,
    needed_bytes: float,
    capacity: float,
    fsdp_sizes: tuple[int, ...],
    num_answers: int = 3,
) -> list[tuple[Setting, float, float]]:
    """Settings that should fit where the current one does not, least extra FLOPs first.

    The model is scaled so that it says of the current setting what the compiler said.

    Returns:
        [(setting, predicted bytes, extra FLOPs as a share of the model's)].
    """
    scale = max(1.0, needed_bytes / predicted_bytes(step, current))
    answers: list[tuple[Setting, float, float]] = []
    for setting in settings(step, current, fsdp_sizes):
        predicted = scale * predicted_bytes(step, setting)
        price = extra_flops(step.spec, setting)
        cheaper = any(price >= p - 1e-3 and predicted >= b for _, b, p in answers)
        if predicted < 0.95 * capacity and not cheaper:
            answers.append((setting, predicted, price))
    return answers[:num_answers]
