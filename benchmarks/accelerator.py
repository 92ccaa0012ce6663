"""What one accelerator does, beside open_clip on the same card: one program for a bare machine.

    python benchmarks/accelerator.py --minutes 5 --out h100.jsonl    the list, from its head
    python benchmarks/accelerator.py --list                          the list
    python benchmarks/accelerator.py --cases b16 b16_open_clip ...   some of it
    python benchmarks/accelerator.py --tiny                          small stand-ins, on a CPU
    python benchmarks/accelerator.py --table h100.jsonl              the tables of a finished file
    python benchmarks/accelerator.py --pack wheels                   here: what to bring along;
    python benchmarks/accelerator.py --wheels wheels --minutes 5     there: with it, no network

Each case runs in a process of its own, within its own time, and appends its rows to --out as they
are known, so that one that fails, hangs or runs out of memory costs the others nothing. What did
not run is a row, too, with its reason.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import wheels
from benchmarks.accelerator_cases import CASES, Case
from benchmarks.common import (
    ROOT,
    MissingError,
    append_line,
    commit,
    machine,
    read_lines,
    versions,
)

PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "flax", "optax"),
    *("orbax-checkpoint", "numpy", "torch", "open_clip_torch", "timm", "simplejpeg"),
    "opencv-python-headless",
)
LEAST_S = 15.0  # a case that has less than this does not begin
TINY_SLACK = 10  # of the limits: a busy CPU is slower at the start of a process than a card's host
MEMORY_FRACTION = "0.92"  # of the card, for JAX; its own choice is 0.75


def main() -> int:
    options = parse()
    if options.list:
        for entry in CASES.values():
            print(f"{entry.name:24} {entry.limit_s:4.0f} s at most   {entry.what}")
        return 0
    if options.table:
        print(tables(read_lines(options.table)))
        return 0
    if options.pack:
        for wheel in wheels.pack(options.pack):
            print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}")
        return 0
    chosen = [CASES[name] for name in options.cases or CASES]
    with tempfile.TemporaryDirectory(prefix="clipjax-benchmark-") as scratch:
        environment = child_environment(Path(scratch), tiny=options.tiny, brought=options.wheels)
        rows = run_list(chosen, options, environment)
    print(tables(rows))
    return 0 if any(row.get("status") == "ok" for row in rows) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all cases (5)")
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"), help="file of rows")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--tiny", action="store_true", help="small stand-ins: is the list whole?")
    parser.add_argument("--wheels", type=Path, help="folder of --pack, installed aside first")
    parser.add_argument("--commit", default="", help="of this tree, where there is no git")
    parser.add_argument("--list", action="store_true", help="print the list and stop")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a file's tables and stop")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="download the wheels and stop")
    return parser.parse_args()


def child_environment(scratch: Path, *, tiny: bool, brought: Path | None) -> dict[str, str]:
    """The environment of the cases' processes.

    The compilation cache is this call's own: what one case compiled another need not, and the first
    compile time of a program is that of a cold compiler.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY_FRACTION,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    path = [str(ROOT)]
    if brought is not None:
        wheels.install(brought, scratch / "site")
        path.append(str(scratch / "site"))
    environment["PYTHONPATH"] = os.pathsep.join(
        [*path, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if tiny:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def run_list(
    chosen: Sequence[Case], options: argparse.Namespace, environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Runs the cases in their order until the time is over; returns all rows of this call."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    already = len(read_lines(options.out))
    end = time.monotonic() + 60 * options.minutes
    append_line(
        options.out,
        {
            "case": "setting",
            "status": "setting",
            "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "commit": options.commit or commit(),
            "tiny": options.tiny,
            "minutes": options.minutes,
            "machine": machine(),
            "versions": child_versions(environment),
        },
    )
    for chosen_case in chosen:
        rows = read_lines(options.out)[already:]
        report_ratios(options.out, rows)
        left = end - time.monotonic()
        if left < min(LEAST_S, chosen_case.limit_s):
            reason = f"{max(left, 0):.0f} s of the {options.minutes:g} minutes were left"
            say_absent(options.out, chosen_case, "not run", reason)
            continue
        print(f"{chosen_case.name}: {chosen_case.what}", flush=True)
        limit_s = chosen_case.limit_s * (TINY_SLACK if options.tiny else 1)
        run_case(chosen_case, options, environment, min(limit_s, left))
        for row in of_case(read_lines(options.out)[already:], chosen_case.name):
            print(f"  {one_line(row)}", flush=True)
    report_ratios(options.out, read_lines(options.out)[already:])
    return read_lines(options.out)[already:]


def child_versions(environment: Mapping[str, str]) -> dict[str, str]:
    """Versions that the cases will find, those of the wheels among them."""
    paths = environment["PYTHONPATH"].split(os.pathsep)
    added = [path for path in paths if path not in sys.path]
    sys.path[1:1] = added
    try:
        return versions(*PACKAGES)
    finally:
        del sys.path[1 : 1 + len(added)]


def run_case(
    chosen: Case, options: argparse.Namespace, environment: Mapping[str, str], limit_s: float
) -> None:
    """Runs a case in a process of its own; says so if it ended without a row of its own."""
    command = [sys.executable, "-m", "benchmarks.accelerator_cases", chosen.name]
    command += ["--out", str(options.out.absolute()), *(["--tiny"] if options.tiny else [])]
    before = len(read_lines(options.out))
    begin = time.monotonic()
    with (
        tempfile.TemporaryFile(mode="w+", errors="replace") as output,
        started(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        words = [line for line in output.read().splitlines() if line.strip()]
    new = of_case(read_lines(options.out)[before:], chosen.name)
    if code is None:
        say_absent(options.out, chosen, "time over", f"ended after {limit_s:.0f} s")
    elif not new:
        last = words[-1][:400] if words else "without a word"
        say_absent(options.out, chosen, "failed", f"exit code {code}: {last}")
    append_line(
        options.out,
        {"case": chosen.name, "status": "wall", "wall_s": time.monotonic() - begin},
    )


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process with a group of its own, all of which is ended when the block is left."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def say_absent(out: Path, chosen: Case, status: str, reason: str) -> None:
    """Writes that a case has no figures, and why."""
    row = {"case": chosen.name, "what": chosen.what, "status": status, "reason": reason}
    append_line(out, row)
    print(f"{chosen.name}: {status}: {reason}", flush=True)


# --- ratios and tables ----------------------------------------------------------------------------

# A figure that both sides have: whether more of it is better.
COMPARED = {
    "images_per_s": True,
    "texts_per_s": True,
    "step_ms": False,
    "peak_memory_gb": False,
    "extra_memory_gb": False,
}


def of_case(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of a case, of its time aside."""
    return [dict(row) for row in rows if row["case"] == name and row["status"] != "wall"]


def ratios_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What clipjax has over its peer, for each pair of which both sides were measured.

    Times are those of the peer over ours and rates ours over the peer's, so that above 1 is better
    for clipjax; memory is ours over the peer's, so that below 1 is. A side that does not learn, and
    two sides on different devices or of different batches, have no ratio.
    """
    done = {row["case"]: row for row in rows if row["status"] == "ok"}
    found = []
    pairs = [(name, entry.name) for entry in CASES.values() for name in entry.against]
    for name, peer in pairs:
        if name not in done or peer not in done:
            continue
        ours, theirs = done[name], done[peer]
        row: dict[str, Any] = {"case": f"{name} over {peer}", "status": "ratio"}
        different = [
            name
            for name in ("platform", "device", "batch", "dtype")
            if name in ours and name in theirs and ours[name] != theirs[name]
        ]
        broken = [r["case"] for r in (ours, theirs) if r.get("learns") is False]
        if different or broken:
            row["reason"] = (
                f"{', '.join(broken)}: the loss does not fall"
                if broken
                else f"not the same {', '.join(different)}"
            )
            found.append(row)
            continue
        for figure, more_is_better in COMPARED.items():
            if ours.get(figure) and theirs.get(figure):
                if "memory" in figure or more_is_better:
                    row[figure] = ours[figure] / theirs[figure]
                else:
                    row[figure] = theirs[figure] / ours[figure]
        found.append(row)
    return found


def report_ratios(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends the ratios that can be had by now and are not there yet."""
    there = {row["case"] for row in rows if row["status"] == "ratio"}
    for row in ratios_of(rows):
        if row["case"] not in there:
            append_line(out, row)


def one_line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    if row["status"] != "ok":
        return f"{row['status']}: {row.get('reason', '')}"
    shown = [
        f"{name} {number(row[name])}"
        for name in (*COLUMNS, "texts_per_s", "data_wait_fraction", "busy_ms", "extra_memory_gb")
        if row.get(name) is not None
    ]
    return ", ".join(shown)


COLUMNS = (
    *("batch", "step_ms", "images_per_s", "mfu", "peak_memory_gb", "compile_s"),
    *("loss_first", "loss_last"),
)


def number(value: Any) -> str:
    """A figure in a table."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables of a file: figures, ratios, what has no figures, kernels."""
    lines: list[str] = []
    for row in rows:
        if row["status"] == "setting":
            host = row["machine"]
            lines.append(
                f"- {row['date']} UTC, commit {row['commit']}, "
                f"{', '.join(host['gpus']) or 'no GPU'}; {host['cpu']}, {host['cores']} cores, "
                f"load average {host['load_average']}"
                + ("; TINY stand-ins: no figure means anything" if row["tiny"] else "")
            )
            lines.append("- " + ", ".join(f"{k} {v}" for k, v in row["versions"].items()))
    lines += ["", f"| case | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    measured = [row for row in rows if row["status"] == "ok"]
    for row in measured:
        cells = [number(row[name]) if row.get(name) is not None else "" for name in COLUMNS]
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    ratios = [row for row in rows if row["status"] == "ratio"]
    if ratios:
        lines += ["", f"| ratio | {' | '.join(COMPARED)} |", "|---" * (len(COMPARED) + 1) + "|"]
    for row in ratios:
        cells = [number(row[name]) if name in row else row.get("reason", "") for name in COMPARED]
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    absent = [row for row in rows if row["status"] not in ("ok", "ratio", "setting", "wall")]
    lines += ["", *(f"- {r['case']}: {r['status']}: {r.get('reason', '')}" for r in absent)]
    for row in measured:
        if "kernels" in row:
            lines += kernel_table(row)
    return "\n".join(lines)


def kernel_table(row: Mapping[str, Any], most: int = 20) -> list[str]:
    """The largest kernels of a traced step, and the sums."""
    lines = ["", f"{row['case']}: busy {row['busy_ms']:.2f} of {row['step_ms']:.2f} ms a step"]
    for name in ("by_direction", "by_kind"):
        lines.append(f"- {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in row[name].items()))
    lines += ["", "| kernel | part of the model | ms a step | runs a step |", "|---|---|---|---|"]
    for kernel in row["kernels"][:most]:
        lines.append(
            f"| {kernel['kernel']} | {kernel['part']} | {kernel['ms']:.3f} | {kernel['runs']:.0f} |"
        )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingError as error:
        sys.exit(str(error))
