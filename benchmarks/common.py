"""What all benchmarks share: where they ran, time, what a ratio is worth, how they write."""

import contextlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.files import write_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class MissingError(Exception):
    """Something that a case needs is not on this machine, or not in this tree."""


# --- where it ran ---------------------------------------------------------------------------------


def load_average() -> float:
    """Processes that wanted a core, mean of the last minute."""
    return round(os.getloadavg()[0], 1)


def machine() -> dict[str, Any]:
    """The host, its load and its GPUs."""
    model = None
    with contextlib.suppress(OSError):
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": load_average(),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """One line a GPU: name, driver and memory; none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages; "absent" for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str:
    """The commit of this checkout, with a plus where files differ; "unknown" without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:
        return "unknown"
    if head.returncode != 0:
        return "unknown"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def setting_lines(*packages: str) -> list[str]:
    """The machine and the versions, as the tables of benchmarks/results begin."""
    host, found = machine(), versions(*packages)
    python = found.pop("python")
    names = ", ".join(f"{name} {number}" for name, number in found.items())
    return [
        f"- host: {host['cpu']}, {host['cores']} cores, {host['memory_gib']:.0f} GiB; "
        f"load average {host['load_average']} at the start; commit {commit()}",
        f"- Python {python}, {names}",
    ]


# --- memory of this process -----------------------------------------------------------------------


def status_bytes(field: str) -> int:
    """A figure of this process: VmRSS is what it holds now, VmHWM the most that it held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"/proc/self/status has no {field}"
    return 1024 * int(found[1])


def forget_peak_memory() -> None:
    """Lets the high-water mark of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


# --- time -----------------------------------------------------------------------------------------


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, on the wall and of this process's CPU time; what it gives is let go of."""
    begin, spent = time.perf_counter(), time.process_time()
    kept = run()
    found = {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - spent}
    del kept
    return found


def time_steps(
    step: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    chunks: int = 4,
    steps_a_chunk: int = 5,
    warm_up: int = 3,
    most_s: float = 20.0,
) -> list[float]:
    """Seconds a step, one figure a chunk.

    A chunk is dispatched as a whole and waited for at its end, as a training loop does: waiting for
    each step would add what the host needs to start the next.

    Args:
        step: dispatches one step.
        wait: waits for what a step gave.
        chunks: figures wanted.
        steps_a_chunk: fewer where a step is so slow that the time would not do.
        warm_up: steps before the first chunk.
        most_s: of all chunks; the first chunk always runs.
    """
    for _ in range(warm_up):
        wait(step())
    begin = time.perf_counter()
    wait(step())
    one = time.perf_counter() - begin
    length = max(1, min(steps_a_chunk, int(most_s / chunks / one)))
    figures: list[float] = []
    start = time.perf_counter()
    while len(figures) < chunks and (not figures or time.perf_counter() - start < most_s):
        begin = time.perf_counter()
        for _ in range(length):
            given = step()
        wait(given)
        figures.append((time.perf_counter() - begin) / length)
    return figures


class Ratio(NamedTuple):
    """A ratio and what it is worth.

    Attributes:
        value: the median of the pairs' ratios.
        noise: half of their range: the figure of another run may lie as far away.
    """

    value: float
    noise: float


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Ratio of figures that were taken in turns, pair by pair, so that a load counts for both."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(ratios), (max(ratios) - min(ratios)) / 2)


# --- results --------------------------------------------------------------------------------------


def rounded(value: Any, digits: int = 5) -> Any:
    """Floats to significant digits, through lists and dicts; what is not finite becomes a text."""
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else str(value)
    return value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line, in one write that is on the disk when this returns."""
    line = json.dumps(rounded(row), allow_nan=False).encode() + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(file, line) != len(line):
            raise OSError(f"{path}: a line was written in part; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `append_line`; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_json(path: Path, document: Any) -> None:
    """Writes a document in one replacement."""
    write_file(path, json.dumps(rounded(document), indent=1) + "\n")
