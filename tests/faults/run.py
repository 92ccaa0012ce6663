"""Runs the fault matrix and records it row by row.

    python -m tests.faults.run                          every row, whole: hours
    python -m tests.faults.run --row K1 --row M1        some rows
    python -m tests.faults.run --row K1 --first 40 --trials 20    a part: trials 40 to 59
    python -m tests.faults.run --row K1 --minutes 30    a part: what is begun in half an hour
    ... --record benchmarks/results/faults_cpu_DATE.jsonl         one line a row is appended

A row's control runs first and must fail: an oracle that cannot fail shows nothing.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import commit, machine
from tests.faults.row import Row, Trial, upper_bound
from tests.faults.rows import all_rows
from tests.helpers.inherited_signals import hear_signals

ROOT = Path(__file__).parents[2]
DEVICES = 8  # of this process


def run_row(
    row: Row, *, first: int, trials: int, folder: Path, minutes: float = math.inf
) -> dict[str, Any]:
    """Runs a row's control and some of its trials; what a record holds of them."""
    begin = time.monotonic()
    shared = shared_folder(row, folder)
    folder = folder / row.name
    failures: list[dict[str, Any]] = []
    control = try_control(row, Trial(0, empty(folder / "control"), shared))
    done = 0
    for index in range(first, min(first + trials, row.trials)):
        if time.monotonic() - begin > 60 * minutes:
            break
        trial = Trial(index, empty(folder / f"trial_{index}"), shared)
        error = try_trial(row.run, trial)
        if error is None:
            shutil.rmtree(trial.folder, ignore_errors=True)
        else:
            failures.append({"trial": index, "error": error})
        print(f"{row.name} {index}: {'ok' if error is None else error}", flush=True)
        done += 1
    return {
        "row": row.name,
        "fault": row.fault,
        "holds": row.holds,
        "first": first,
        "strikes": row.strikes,
        "trials": done * row.strikes,
        "of": row.trials * row.strikes,
        "failures": failures,
        "upper_bound": round(upper_bound(len(failures), done * row.strikes), 5),
        "control_failed": control is None,
        **({} if control is None else {"control": control}),
        "minutes": round((time.monotonic() - begin) / 60, 2),
    }


def shared_folder(row: Row, folder: Path) -> Path:
    """Where a row's trials share a run left alone; rows of one module share it too."""
    shared = folder / row.run.__module__
    shared.mkdir(parents=True, exist_ok=True)
    return shared


def empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def try_control(row: Row, trial: Trial) -> str | None:
    """Why a row's control does not show that the row can fail; None if it does."""
    try:
        row.control(trial)
    except AssertionError:
        return None
    except Exception:
        return traceback.format_exc(limit=-3)[:2000]
    return "nothing failed"


def try_trial(run: Any, trial: Trial) -> str | None:
    """What did not hold, without this machine's paths; None if all did."""
    try:
        run(trial)
    except AssertionError as error:
        text = f"{error}" or traceback.format_exc(limit=-1)
    except Exception:
        text = traceback.format_exc(limit=-3)
    else:
        return None
    return text.replace(str(trial.folder), "FOLDER").replace(f"{ROOT}/", "")[:2000]


def main() -> int:
    os.environ.setdefault("CLIPJAX_RESTARTS", "0")  # a row sees how a run ended
    hear_signals()
    if "XLA_FLAGS" not in os.environ:
        jax.config.update("jax_num_cpu_devices", DEVICES)  # as the tests have
    rows = all_rows()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", choices=list(rows), help="may be repeated")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no trial begins later")
    parser.add_argument("--record", type=Path, help="a file of one JSON line a row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        return int(any([is_bad(rows[name], options, Path(folder)) for name in options.row or rows]))


def is_bad(row: Row, options: argparse.Namespace, folder: Path) -> bool:
    """Runs a row, says and records how it went; whether it failed or its control did not."""
    record = run_row(
        row, first=options.first, trials=options.trials, folder=folder, minutes=options.minutes
    )
    record |= {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "machine": machine(),
    }
    if not record["control_failed"]:
        print(
            f"{row.name}: its control did not fail, so the row shows nothing: {record['control']}"
        )
    print(
        f"{row.name}: {record['trials']} of {record['of']} trials, {len(record['failures'])} "
        f"failures, rate below {record['upper_bound']:.2%} (95 %), {record['minutes']} minutes"
    )
    if options.record:
        with options.record.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return bool(record["failures"]) or not record["control_failed"]


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
