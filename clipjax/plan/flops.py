"""FLOPs of a compiled step: its matrix products, loop trip counts multiplied in.

Two per multiply-add. Elementwise work is left out: it does not run on the matrix units whose peak
the bound divides by.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from clipjax.plan.hlo import Visit
from clipjax.plan.kernels import Work, call_work, is_uncounted, label
from clipjax.plan.products import product_flops

# Beside the loss only a kernel of attention stands in a shard_map; the rest is left to the
# partitioner.
LOSS = re.compile(r"^(?!.*attention).*shard_map")
OPTIMIZER = "optimizer"  # the scope of its matrix products: muon's
# Where a FLOP comes from, told by the JAX name of the operation; the first that fits.
PARTS = (
    (OPTIMIZER, re.compile(rf"/{OPTIMIZER}/")),
    ("recomputed", re.compile(r"rematted_computation|/remat\d*/|checkpoint/rem")),
    ("loss", LOSS),
    ("backward", re.compile(r"transpose\(")),
    ("forward", re.compile("")),
)


class Flops(NamedTuple):
    """FLOPs of one device and one step.

    Attributes:
        total: of all matrix products.
        by_part: forward, backward, recomputed in the backward pass, loss; and of the optimizer,
            where it multiplies matrices.
        kernels: of the kernels that are called by name, runs a step and FLOPs by name. They are
            part of the total.
        uncounted: runs a step of kernels that do not say what they compute, by name.
    """

    total: float
    by_part: dict[str, float]
    kernels: dict[str, tuple[int, float]]
    uncounted: dict[str, int]


def count_flops(visits: Iterable[Visit]) -> Flops:
    """Sums the matrix products over what a step runs."""
    by_part = {part: 0.0 for part, _ in PARTS}
    kernels: dict[str, tuple[int, float]] = {}
    uncounted: dict[str, int] = {}
    for visit in visits:
        instruction, times = visit.instruction, visit.times
        work = None
        if instruction.opcode in ("dot", "convolution"):
            work = Work(product_flops(instruction, visit.computation))
        elif instruction.opcode == "custom-call":
            work = call_work(instruction, visit.computation)
            name = label(instruction)
            if work is not None:
                runs, flops = kernels.get(name, (0, 0.0))
                kernels[name] = runs + times, flops + times * work.flops
            elif is_uncounted(instruction, visit.computation):
                uncounted[name] = uncounted.get(name, 0) + times
        if work is not None:
            part = next(p for p, pattern in PARTS if pattern.search(instruction.op_name))
            by_part[part] += times * (work.flops - work.recomputed)
            by_part["recomputed"] += times * work.recomputed
    if not by_part[OPTIMIZER]:
        del by_part[OPTIMIZER]
    return Flops(sum(by_part.values()), by_part, kernels, uncounted)
