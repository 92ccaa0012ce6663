"""clipjax beside its peers on this CPU, taking turns: ratios, with the noise that was measured.

    python -m benchmarks.run --quick                 every case, 11 minutes of a quiet machine
    python -m benchmarks.run                         the same with more turns
    python -m benchmarks.run --cases embedding ...   some; a word of the name is enough

It writes benchmarks/results/cpu_DATE_HHMM.json (UTC; --out); `python benchmarks/check.py` compares
that with a record before it. All cases are written, those that clipjax loses too. It needs torch
and open_clip beside clipjax: pip install torch open_clip_torch.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import (
    RESULTS,
    ROOT,
    MissingError,
    commit,
    load_average,
    machine,
    paired_ratio,
    versions,
    write_json,
)
from benchmarks.run_cases import CASES, Case
from benchmarks.workers import Worker, WorkerError

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "open_clip_torch", "simplejpeg", "pillow")
READY_S = 900.0  # to build and compile a side, on a busy machine, too
# What starts a Python that has done nothing yet; the last is what the others are compared with.
STARTS = {
    "import clipjax": ["-c", "import clipjax"],
    "import clipjax; clipjax.load": ["-c", "import clipjax; clipjax.load"],
    "clipjax --help": ["-m", "clipjax", "--help"],
    "import open_clip": [
        "-c",
        "import sys; sys.path.append('tests/golden/models'); import torchvision_operators; "
        "import open_clip",
    ],
}
START_CASE = "launch of a process"


def main() -> int:
    options = parse()
    turns = options.turns or (3 if options.quick else 15)
    names = [*CASES, START_CASE]
    names.remove("tiny")
    if options.cases:
        words = [word.lower() for word in options.cases]
        names = [n for n in [*names, "tiny"] if any(word in n.lower() for word in words)]
    document: dict[str, Any] = {
        "name": options.name,
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "commit": commit(),
        "command": f"python -m benchmarks.run {' '.join(sys.argv[1:])}".strip(),
        "how": "the sides take turns, each in a process of its own; a ratio is the peer's "
        "time over clipjax's, the median of the turns, above 1 where clipjax is faster; noise is "
        "half of the range of the turns' ratios",
        "turns": turns,
        "cases": names if options.cases else None,  # None: all
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "rows": [],
    }
    for name in names:
        print(f"### {name}", flush=True)
        rows = start_rows(turns) if name == START_CASE else case_rows(name, CASES[name], turns)
        for row in rows:
            print(f"  {row['case']}: {one_line(row)}", flush=True)
        document["rows"] += rows
        document["load_average_at_the_end"] = load_average()
        write_json(options.out, document)  # what was measured is kept, whatever comes next
    print(f"wrote {options.out}")
    return 0 if all(row["status"] == "ok" for row in document["rows"]) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 turns in place of 15")
    parser.add_argument("--turns", type=int, default=0, help="another number of them")
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="cases whose name holds one")
    parser.add_argument("--name", default="cpu", help="of the record; check.py compares by it")
    parser.add_argument("--out", type=Path, help="the file; benchmarks/results/NAME_DATE_HHMM.json")
    options = parser.parse_args()
    if options.out is None:
        now = time.strftime("%Y-%m-%d_%H%M", time.gmtime())  # two runs of a day are two records
        options.out = RESULTS / f"{options.name}_{now}.json"
    return options


def case_rows(name: str, case: Case, turns: int) -> list[dict[str, Any]]:
    """One row a peer, and one a side that could not be measured."""
    workers: dict[str, Worker] = {}
    ready: dict[str, Any] = {}
    absent: list[dict[str, Any]] = []
    try:
        for side in case.sides:
            workers[side] = Worker(["-m", "benchmarks.run_cases", name, side])
        # Nothing of it is compared: the sides build and compile beside each other.
        with ThreadPoolExecutor(len(workers)) as pool:
            prepared = {
                side: pool.submit(worker.ask, "ready", limit_s=READY_S)
                for side, worker in workers.items()
            }
        for side, answer in prepared.items():
            try:
                ready[side] = answer.result()
            except (MissingError, WorkerError) as error:
                workers.pop(side).close()
                absent.append(absent_row(name, side, error))
        answers, ended = take_turns(workers, turns)
        absent += [absent_row(name, side, error) for side, error in ended.items()]
        return peer_rows(name, case, answers, ready) + absent
    finally:
        for worker in workers.values():
            worker.close()


def absent_row(name: str, side: str, error: Exception) -> dict[str, Any]:
    """A side that has no figures, and why."""
    status = "missing" if isinstance(error, MissingError) else "failed"
    return {"case": name, "peer": side, "status": status, "reason": str(error)[:400]}


def take_turns(
    workers: Mapping[str, Worker], turns: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, WorkerError]]:
    """The answers of each side that took all turns; why the others ended.

    Whoever began a turn ends the next.
    """
    found: dict[str, list[dict[str, float]]] = {side: [] for side in workers}
    ended: dict[str, WorkerError] = {}
    for turn in range(turns):
        order = list(found)[:: 1 if turn % 2 == 0 else -1]
        for side in order:
            try:
                found[side].append(workers[side].ask("time"))
            except WorkerError as error:
                ended[side] = error
                del found[side]
    return found, ended


def peer_rows(
    name: str, case: Case, answers: Mapping[str, Sequence[Mapping[str, float]]], ready: Any
) -> list[dict[str, Any]]:
    """Ratios of each peer over ours."""
    ours, *peers = case.sides
    rows = []
    for peer in peers:
        if ours not in answers or peer not in answers:
            continue
        row: dict[str, Any] = {"case": name, "peer": peer, "status": "ok"}
        if case.note:
            row["note"] = case.note
        for clock in ("wall", "cpu"):
            times = {s: [a[f"{clock}_s"] for a in answers[s]] for s in (ours, peer)}
            ratio = paired_ratio(times[peer], times[ours])
            row |= {f"{clock}_ratio": ratio.value, f"{clock}_noise": ratio.noise}
            row[f"{clock}_s"] = {"clipjax": times[ours], "peer": times[peer]}
        row["prepared"] = {"clipjax": ready[ours], "peer": ready[peer]}
        row["last_value"] = {
            "clipjax": answers[ours][-1]["value"],
            "peer": answers[peer][-1]["value"],
        }
        rows.append(row)
    return rows


def start_rows(turns: int) -> list[dict[str, Any]]:
    """Wall and CPU time from nothing to an imported module, or to the help."""
    *ours, peer = STARTS
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for turn in range(turns + 1):
        for name, arguments in STARTS.items():
            answer = start_once(arguments)
            if answer is None:
                reason = f"{name} ends with an error"
                return [{"case": START_CASE, "peer": peer, "status": "missing", "reason": reason}]
            if turn:  # the first fills the caches of the disk
                answers[name].append(answer)
    rows = []
    for name in ours:
        case = Case(CASES["tiny"].size, "start", 1, (name, peer))
        ready = {side: {} for side in (name, peer)}
        values = {s: [{**a, "value": 0.0} for a in answers[s]] for s in (name, peer)}
        (row,) = peer_rows(f"{START_CASE}: {name}", case, values, ready)
        del row["prepared"], row["last_value"]
        rows.append(row)
    return rows


def start_once(arguments: Sequence[str]) -> dict[str, float] | None:
    """Wall and CPU seconds of a Python with arguments; None if it fails."""
    before, begin = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True)
    wall, after = time.perf_counter() - begin, os.times()
    if done.returncode != 0:
        return None
    cpu = sum(after[2:4]) - sum(before[2:4])
    return {"wall_s": wall, "cpu_s": cpu}


def one_line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    if row["status"] != "ok":
        return f"{row['peer']}: {row['status']}: {row['reason']}"
    return (
        f"{row['peer']} over clipjax: {row['wall_ratio']:.2f}x +- {row['wall_noise']:.2f}, "
        f"CPU time {row['cpu_ratio']:.2f}x +- {row['cpu_noise']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
