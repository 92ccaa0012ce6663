"""Bounds: what the chip's published figures allow for the work that the compiler counted.

A step cannot be faster than the slowest of its three resources, each at its peak and all of them
overlapping. Nothing here is a measurement or a forecast.

What a whole run takes at an assumed share of the peak is reckoned from the model's FLOPs alone.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipjax.experiment import Stage
from clipjax.plan.chips import Chip, Switches, Torus
from clipjax.plan.collectives import Collective
from clipjax.plan.model_flops import ModelFlops
from clipjax.plan.topology import Topology


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
    """Time of a collective on its links.

    On a torus: two directions of every axis that it spans; a permutation to the next device uses
    one direction of one axis. Between slices: the chip's part of the network. Between GPUs: the
    slower of the switch within a host and the network between hosts.
    """
    interconnect = chip.interconnect
    if isinstance(interconnect, Torus) and collective.crossing.slices > 1:
        bandwidth = (interconnect.network_bandwidth or math.nan) / chip.devices
        return collective.total_bytes / bandwidth
    if isinstance(interconnect, Switches):
        return max(
            collective.total_bytes / interconnect.host_bandwidth,
            network_bytes(collective) / interconnect.network_bandwidth,
        )
    return _torus_seconds(interconnect, collective)


def _torus_seconds(torus: Torus, collective: Collective) -> float:
    axes = collective.crossing.torus_axes
    if collective.kind == "collective-permute":
        return collective.total_bytes / torus.link_bandwidth
    return collective.total_bytes / (2 * axes * torus.link_bandwidth)


def network_bytes(collective: Collective) -> float:
    """Bytes that a device's part of its host's network has to receive in a step.

    What a group of N devices in H hosts sends around reaches each host once: (H-1)/H of it, over
    the NICs of the N/H devices that the host has in the group, and is passed on within the host.
    Of an all-to-all each device needs its own part, of a permutation its own message.
    """
    size, hosts = collective.crossing.size, collective.crossing.hosts
    if hosts == 1:
        return 0.0
    if collective.kind in ("collective-permute", "collective-broadcast"):
        return collective.total_bytes
    foreign = collective.total_bytes * ((hosts - 1) / hosts) / ((size - 1) / size)
    return foreign if collective.kind == "all-to-all" else foreign * hosts / size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user states; nothing here is known from the program.

    Attributes:
        mfu: model FLOPs utilisation of the run.
        price: of one chip for one hour, in USD; None leaves the cost out.
    """

    mfu: float = 0.40
    price: float | None = None


def chip_hours(stage: Stage, needs: ModelFlops, chip: Chip, assumptions: Assumptions) -> float:
    """Hours of one chip that a stage's examples take at the assumed MFU."""
    return stage.num_examples * needs.train / (assumptions.mfu * chip.flops) / 3600


def run_cost(
    stages: Sequence[Stage],
    needs: Sequence[ModelFlops],
    topology: Topology,
    assumptions: Assumptions,
) -> dict[str, Any]:
    """Time and cost of a run at the assumed MFU.

    Args:
        stages: of the run.
        needs: of each stage's model, one example.
        topology: what it runs on.
        assumptions: the MFU and the price.

    Returns:
        Totals of the run; rates and costs of each stage under "stages", and the rates of the last
        one beside them.
    """
    chips, price = topology.num_chips, assumptions.price
    rates: list[dict[str, Any]] = []
    for stage, flops in zip(stages, needs, strict=True):
        samples_per_s_chip = assumptions.mfu * topology.chip.flops / flops.train
        examples = stage.num_examples
        hours = chip_hours(stage, flops, topology.chip, assumptions)
        rates.append(
            {
                "sizes": stage.sizes,
                "steps": stage.num_steps,
                "batch_size": stage.batch_size,
                "examples": examples,
                "model_flops_per_example": flops.train,
                "samples_per_s_chip": samples_per_s_chip,
                "images_per_s_host": samples_per_s_chip * chips / topology.num_hosts,
                "chip_hours": hours,
                "cost_usd": None if price is None else hours * price,
            }
        )
    hours = sum(rate["chip_hours"] for rate in rates)
    return {
        "examples": sum(rate["examples"] for rate in rates),
        "samples_per_s_chip": rates[-1]["samples_per_s_chip"],
        "images_per_s_host": rates[-1]["images_per_s_host"],
        "stages": rates,
        "chip_hours": hours,
        "days": hours / chips / 24,
        "cost_usd": None if price is None else hours * price,
    }
