"""An estimate of the time that attention's kernel for short sequences takes on a TPU by itself.

A bound of a step divides FLOPs by the peak of the matrix units, which a kernel cannot reach: the
units work on whole tiles, so rows of 197 tokens are as dear as of 256, and a softmax is vector work
that they wait for. An estimate from counts, not a measurement; for a v5e it is between a half and
the whole of what libtpu's compiler schedules (tests/plan/test_attention_time.py;
benchmarks/results/short_attention_tpu_aot_2026-11-28.md).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from clipjax.layers.short_attention_blocks import round_up
from clipjax.plan.chips import Chip
from clipjax.plan.hlo import Visit
from clipjax.plan.kernels import cost_estimate, label

# Rows of a register, and numbers of one.
_SUBLANES, _REGISTER = 8, 1024
# Registers that a core's vector units take in a cycle; one of them at most makes exponentials.
_VECTOR_UNITS = 4
# "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus): side of a matrix unit.
_SIDES = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
# Matrix units of a core times cores: with the side and the peak they give the clock.
_UNITS = {"v4": (4, 2), "v5e": (4, 1), "v5p": (4, 2)}
# Products with scores, and vector operations for each score as the kernels make it: differences,
# maxima, sums, masks left out, conversions to the operands' dtype.
_PRODUCTS = {"forward": 2, "backward": 5}
_VECTOR_OPS = {"forward": 6, "backward": 12}
# Names of the kernels of clipjax.layers.short_attention, and widths of their results in heads.
_KERNEL = re.compile(r"short_attention_(forward|backward)")
_PARTS = {"forward": 1, "backward": 3}


class AttentionTime(NamedTuple):
    """Estimated seconds of one kernel on one chip.

    Attributes:
        padded_flops: of its products, whole tiles counted.
        matrix_s: of these at the peak.
        vector_s: of the softmax and its gradient; None where the chip's clock is not published.
    """

    padded_flops: float
    matrix_s: float
    vector_s: float | None

    @property
    def total_s(self) -> float:
        """One after the other: within a head the softmax waits for the scores."""
        return self.matrix_s + (self.vector_s or 0.0)


def attention_time(
    chip: Chip, which: str, *, batch: int, length: int, heads: int, head_dim: int
) -> AttentionTime:
    """Estimates a kernel of `clipjax.layers.short_attention`.

    Args:
        chip: a TPU.
        which: forward or backward.
        batch: images of the chip.
        length: tokens of each.
        heads: of an image.
        head_dim: numbers of a head.

    Raises:
        ValueError: a chip that has no such units.
    """
    if chip.name not in _SIDES:
        raise ValueError(f"{chip.name} is no TPU; the kernel runs on {', '.join(_SIDES)}")
    side = _SIDES[chip.name]
    rows, columns, inner = (
        round_up(length, _SUBLANES),
        round_up(length, side),
        round_up(head_dim, side),
    )
    times = batch * heads * _PRODUCTS[which]
    padded_flops = 2.0 * times * rows * columns * inner
    vector_s = None
    if chip.name in _UNITS:
        units, cores = _UNITS[chip.name]
        clock = chip.flops / (2 * side**2 * units * cores)
        scores = rows * round_up(length, 128) / _REGISTER
        cycles = batch * heads * scores * _VECTOR_OPS[which] / _VECTOR_UNITS
        vector_s = cycles / (clock * cores)
    return AttentionTime(padded_flops, padded_flops / chip.flops, vector_s)


def counts_softmax(chip: Chip) -> bool:
    """Whether the estimate has the softmax: the chip's clock is known."""
    return chip.name in _UNITS


def attention_times(chip: Chip, visits: Iterable[Visit]) -> dict[str, tuple[int, float]]:
    """Estimates the calls of the kernels in a step compiled for a chip.

    Args:
        chip: of the program's devices; no kernel of the name runs on others than TPUs.
        visits: what a step of one device runs.

    Returns:
        Of each kernel, forward and backward: its runs a step, and seconds of all of them.
    """
    found: dict[str, tuple[int, float]] = {}
    for visit in visits:
        instruction = visit.instruction
        if instruction.opcode != "custom-call" or chip.name not in _SIDES:
            continue
        name, stated = _KERNEL.fullmatch(label(instruction)), cost_estimate(instruction)
        if name is None or not stated:
            continue
        which = name[1]
        batch, length, width = instruction.shapes[0].dims
        heads = int(stated["transcendentals"]) // (batch * length**2)  # an exponential a score
        once = attention_time(
            chip,
            which,
            batch=batch * chip.devices,  # the chip's devices do it at the same time
            length=length,
            heads=heads,
            head_dim=width // (_PARTS[which] * heads),
        )
        times, seconds = found.get(which, (0, 0.0))
        found[which] = times + visit.times, seconds + visit.times * once.total_s
    return found
