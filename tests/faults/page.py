"""The table of docs/reliability.md, made of the rows and of what was recorded.

`python -m tests.faults.page [FILE ...]` adds the lines of files that `--record` wrote to those of
RESULTS, and writes the table again.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.row import Row, upper_bound
from tests.faults.rows import all_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "faults_cpu_2026-11-28.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table of the rows -->\n", "<!-- end of the table -->\n"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def newest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of parts that hold the same trials the newer ones, whose control failed as it must."""
    kept: list[dict[str, Any]] = []
    for record in sorted(records, key=lambda record: record["date"]):
        if record["trials"] and record["control_failed"]:
            span = _span(record)
            kept = [x for x in kept if not set(_span(x)) & set(span)] + [record]
    return kept


def _span(record: dict[str, Any]) -> range:
    # A record of a row of several strikes a trial counts strikes, and its first is a trial.
    return range(record["first"], record["first"] + record["trials"] // record.get("strikes", 1))


def line(row: Row, records: list[dict[str, Any]]) -> str:
    """A line of the table."""
    done = newest(record for record in records if record["row"] == row.name)
    trials = sum(record["trials"] for record in done)
    failures = sum(len(record["failures"]) for record in done)
    bound = f"{upper_bound(failures, trials):.1%}" if trials else "-"
    minutes = f"{sum(record['minutes'] for record in done):.0f}" if trials else "-"
    commits = ", ".join(dict.fromkeys(record["commit"] for record in done)) or "not run yet"
    of = row.trials * row.strikes
    cells = (row.name, row.fault, row.holds, f"{trials} of {of}", failures if trials else "-")
    cells += (bound, minutes, commits, row.others or "-")
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def table(records: list[dict[str, Any]]) -> str:
    """The table, a line a row."""
    head = ("row", "fault", "what must hold", "N run", "failures", "95 % upper bound", "minutes")
    head += ("commit", "what other systems promise and test")
    lines = ["| " + " | ".join(head) + " |\n", "|---" * len(head) + "|\n"]
    return "".join([*lines, *(line(row, records) for row in all_rows().values())])


def with_table(page: str, records: list[dict[str, Any]]) -> str:
    """A page with the table of now between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE.name} lacks its marks"
    return before + BEGIN + table(records) + END + after


def main(files: list[str]) -> None:
    """Adds files of records, and writes the table."""
    records = read_records(RESULTS) if RESULTS.exists() else []
    for file in files:
        records += [record for record in read_records(Path(file)) if record not in records]
    text = "".join(json.dumps(record) + "\n" for record in records)
    RESULTS.write_text(text)
    PAGE.write_text(with_table(PAGE.read_text(), records))


if __name__ == "__main__":
    main(sys.argv[1:])
