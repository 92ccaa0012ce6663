"""What would make a step fit: the settings to try, cheapest first, by the model of its memory."""

import dataclasses
from typing import Any

from clipjax.experiment.memory import Setting, Step, extra_flops, predicted_bytes
from clipjax.layers.remat import REMAT


def settings(step: Step, current: Setting, fsdp_sizes: tuple[int, ...]) -> list[Setting]:
    """The settings worth trying, the one of the config among them, least extra FLOPs first."""
    shardings = [("zero1", 1), *(("fsdp", size) for size in fsdp_sizes)]
    if (current.sharding, current.fsdp) not in shardings:
        shardings.insert(0, (current.sharding, current.fsdp))
    found = [
        Setting(remat=remat, micro_batches=count, sharding=sharding, fsdp=fsdp)
        for remat in REMAT
        for count in _micro_batches(step)
        for sharding, fsdp in shardings
    ]
    return sorted(found, key=lambda s: (round(extra_flops(step, s), 3), s != current))


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


def prefer(
    step: Step, current: Setting, *, needed_bytes: float, capacity: float, fits: bool
) -> Preference:
    """Chooses remat and micro-batches under the current sharding, least extra FLOPs first.

    Of the current setting the compiler's word counts, of the others the model's, scaled to it.
    """
    scale = needed_bytes / predicted_bytes(step, current)
    options = {
        dataclasses.replace(current, remat=remat, micro_batches=count): None
        for remat in REMAT
        for count in (*_micro_batches(step), current.micro_batches)
    } | {current: None}
    refused: list[Any] = []
    for setting in sorted(options, key=lambda s: recomputation_order(step, s)):
        predicted = scale * predicted_bytes(step, setting)
        if fits if setting == current else predicted < 0.95 * capacity:
            price = extra_flops(step, setting)
            return Preference(
                setting=setting,
                predicted_bytes=predicted,
                extra_flops=price,
                refused=tuple(refused),
            )
        refused.append((setting, predicted))
    return Preference(setting=None, predicted_bytes=0, extra_flops=0, refused=tuple(refused))


def recomputation_order(step: Step, setting: Setting) -> tuple[int, int, float]:
    """Sorts by extra FLOPs; of those within 5 % of the model's, fewer micro-batches first."""
    price = extra_flops(step, setting)
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
        price = extra_flops(step, setting)
        cheaper = any(price >= p - 1e-3 and predicted >= b for _, b, p in answers)
        if predicted < 0.95 * capacity and not cheaper:
            answers.append((setting, predicted, price))
    return answers[:num_answers]
