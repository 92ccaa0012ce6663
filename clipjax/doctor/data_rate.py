"""What the data gives, measured, against what the devices take, by the figures of a plan."""

import concurrent.futures
import itertools
import os
import time
from typing import NamedTuple

import jax
import numpy as np

from clipjax.config_fields import Settings
from clipjax.data.loading.loader import Loader
from clipjax.data.source import SampleError, draw
from clipjax.doctor.findings import BAD, NOTE, OK, Finding
from clipjax.experiment import Program
from clipjax.plan.chips import chip_of_kind
from clipjax.plan.model_flops import flops_of

_DECODING = 'docs/data.md says what makes decoding quick: `decode="fast"`, smaller pictures'


class Demand(NamedTuple):
    """What the devices are said to take.

    Attributes:
        samples_per_s: of the whole run; None takes it from the plan's figures.
        mfu: the share of the devices' peak that is assumed then.
    """

    samples_per_s: float | None = None
    mfu: float = 0.4


class Rates(NamedTuple):
    """What the data gave in one process.

    Attributes:
        read: examples a second from the source, not decoded.
        bytes_read: of their images, a second.
        made: examples a second in whole batches.
        first_s: seconds to the first batch.
        bad: examples that were replaced, in all.
    """

    read: float
    bytes_read: float
    made: float
    first_s: float
    bad: int


def measure(loader: Loader, settings: Settings, seconds: float) -> Rates:
    """Reads from the source, and then makes batches as a run does, for so long each."""
    read, bytes_read = _read(loader, max(1, settings.data.num_workers), seconds)
    begin = time.monotonic()
    first_s = since = 0.0
    made = 0
    skipped = 1 + settings.data.prefetch  # made ahead, before anybody took one
    for number, (_, batch) in enumerate(loader.iterate(0), 1):
        now = time.monotonic()
        if number == 1:
            first_s = now - begin
        if number == skipped:
            since = now
        made += len(batch["text"]) * (number > skipped)
        if number > skipped and now - since >= seconds:
            break
    rate = made / max(time.monotonic() - since, 1e-9)
    return Rates(read, bytes_read, rate, first_s, sum(loader.counts().values()))


def _read(loader: Loader, num_threads: int, seconds: float) -> tuple[float, float]:
    """Examples and bytes a second, at positions of the stream that the batches do not reach."""
    begin, source = time.monotonic(), loader.source
    start = len(source) // 2

    def sizes() -> tuple[int, int]:
        count = total = 0
        while time.monotonic() - begin < seconds or not count:
            position = start + next(positions)
            try:
                image = source[int(draw(source, np.array(position), loader.seed))]["image"]
                total += len(image) if isinstance(image, bytes) else 0
            except SampleError:
                pass  # what a filter leaves out was read all the same
            count += 1
        return count, total

    positions = itertools.count()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        found = [task.result() for task in [pool.submit(sizes) for _ in range(num_threads)]]
    took = time.monotonic() - begin
    return sum(count for count, _ in found) / took, sum(total for _, total in found) / took


def demanded(program: Program, demand: Demand) -> tuple[float | None, str]:
    """Examples a second that the whole run takes, and where that is from; None if not known.

    The stage with the least computation takes the most.
    """
    if demand.samples_per_s is not None:
        return demand.samples_per_s, "by --samples_per_s"
    device = program.mesh.devices.flat[0]
    chip = chip_of_kind(device.device_kind)
    if chip is None:
        return None, f"no peak of {device.device_kind} is known: --samples_per_s=N says it"
    needs = min(flops_of(stage).train for stage in program.stages)
    flops = program.mesh.devices.size * chip.flops / chip.devices * demand.mfu
    how = (
        f"at {demand.mfu:.0%} of the peak of {program.mesh.devices.size} x {chip.name} and "
        f"{needs / 1e9:,.1f} GFLOP an example"
    )
    return flops / needs, how


def judge(found: Rates, wanted: float | None, how: str, workers: int) -> Finding:
    """Holds what this process gives against its part of what the devices take.

    Args:
        found: what this process gave.
        wanted: examples a second of the whole run; None where that is not known.
        how: where `wanted` is from.
        workers: of the loader.
    """
    cores = len(os.sched_getaffinity(0))
    # Pictures that the source draws or holds as arrays have no bytes that were read.
    size = f" ({found.bytes_read / 1e6:,.1f} MB/s)" if found.bytes_read else ""
    text = (
        f"{found.made:,.0f} examples a second decoded and in batches, {workers} workers on {cores} "
        f"cores; {found.read:,.0f} a second{size} from the source alone; the first batch after "
        f"{found.first_s:.1f} s"
    )
    text += f"; {found.bad} examples were bad" if found.bad else ""
    if wanted is None:
        return Finding("data", NOTE, f"{text}; what the devices take is not known", how)
    each = wanted / jax.process_count()
    text = f"{text}; the devices of a process take {each:,.0f} a second {how}"
    if found.made >= each:
        return Finding("data", OK, text)
    if found.read < each:
        remedy = "the source is too slow: stage it nearer, or pack it (`clipjax data pack`)"
    elif workers < cores:
        remedy = f"--config.data.num_workers={cores}, one for each core"
    else:
        remedy = f"more cores for each device; {_DECODING}"
    return Finding("data", BAD, text, remedy)
