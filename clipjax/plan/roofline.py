"""Bounds: what the chip's published figures allow for the work that the compiler counted.

A step cannot be faster than the slowest of its three resources, each at its peak and all of them
overlapping. Nothing here is a measurement or a forecast.
"""

from collections.abc import Sequence
from typing import NamedTuple

from clipjax.plan.chips import Chip
from clipjax.plan.collectives import Collective


class Bounds(NamedTuple):
    """Lower bounds of the step time, and the upper bounds that follow.

    Attributes:
        compute_s: FLOPs over the peak of the matrix units.
        hbm_s: HBM bytes over the HBM's bandwidth.
        links_s: collectives one after another, each on all links that its group spans.
        step_s: the largest of the three.
        limited_by: "compute", "HBM" or "links".
        samples_per_s_chip: upper bound of the throughput.
        mfu: upper bound of the model FLOPs utilisation.
    """

    compute_s: float
    hbm_s: float
    links_s: float
    step_s: float
    limited_by: str
    samples_per_s_chip: float
    mfu: float


def bounds(
    chip: Chip,
    *,
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[Collective],
    batch_per_device: float,
    model_flops_per_example: float,
) -> Bounds:
    """Bounds one step.

    Args:
        chip: figures of a chip; a device is a `1 / chip.devices` of it.
        flops: of one device, from the compiled program.
        hbm_bytes: of one device.
        collectives: of one device.
        batch_per_device: examples.
        model_flops_per_example: what the model needs.
    """
    peak = chip.flops / chip.devices
    compute_s = flops / peak
    hbm_s = hbm_bytes / (chip.hbm_bandwidth / chip.devices)
    links_s = sum(link_seconds(chip, collective) for collective in collectives)
    times = {"compute": compute_s, "HBM": hbm_s, "links": links_s}
    limited_by = max(times, key=times.__getitem__)
    step_s = times[limited_by]
    return Bounds(
        compute_s=compute_s,
        hbm_s=hbm_s,
        links_s=links_s,
        step_s=step_s,
        limited_by=limited_by,
        samples_per_s_chip=batch_per_device * chip.devices / step_s,
        mfu=batch_per_device * model_flops_per_example / (step_s * peak),
    )


def link_seconds(chip: Chip, collective: Collective) -> float:
    """Time of a collective on its links: two directions of every torus axis that it spans.

    A permutation to the next device uses one direction of one axis.
    """
    axes = collective.crossing.torus_axes
    if collective.kind == "collective-permute":
        return collective.total_bytes / chip.link_bandwidth
    return collective.total_bytes / (2 * axes * chip.link_bandwidth)
