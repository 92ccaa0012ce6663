"""What moved since the last record: ratios that differ by more than the noise of both.

    python benchmarks/check.py                    the newest two of the same name and cases
    python benchmarks/check.py FILE               this record beside the newest before it
    python benchmarks/check.py FILE --against FILE

A record of the same cases is preferred to one of others. Exit code 0: nothing got worse; 1:
something got worse beyond the noise, or is missing although the newer record was to have it; 2:
there is nothing to compare. A ratio is the peer's time over clipjax's: it got worse where it fell.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import RESULTS

CLOCKS = ("wall", "cpu")


class Move(NamedTuple):
    """A ratio in two records.

    Attributes:
        what: case, peer and clock.
        before: the ratio of the older record.
        after: of the newer one; None where it has no such row.
        noise: of both together.
        is_meant: whether the newer record was to have the row.
    """

    what: str
    before: float
    after: float | None
    noise: float
    is_meant: bool = True

    @property
    def is_worse(self) -> bool:
        """Whether it fell beyond the noise, or is gone."""
        if self.after is None:
            return self.is_meant
        return self.after < self.before - self.noise

    @property
    def is_better(self) -> bool:
        """Whether it rose beyond the noise."""
        return self.after is not None and self.after > self.before + self.noise


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="the newer record")
    parser.add_argument("--against", type=Path, help="the older record")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the records")
    options = parser.parse_args()
    try:
        new, old = choose(options.file, options.against, options.folder)
    except ValueError as error:
        print(error)
        return 2
    found = moves(old, new)
    print(f"{new['date']} (commit {new['commit']}) beside {old['date']} (commit {old['commit']})")
    if old["machine"]["cpu"] != new["machine"]["cpu"]:
        print(f"another CPU: {old['machine']['cpu']} before, {new['machine']['cpu']} now")
    for move in found:
        print(f"  {line(move)}")
    worse = [move for move in found if move.is_worse]
    print(f"{len(worse)} of {len(found)} ratios got worse beyond the noise")
    return 1 if worse else 0


def choose(
    file: Path | None, against: Path | None, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newer and the older record.

    Raises:
        ValueError: a file is no record, or there is none to compare with.
    """
    records = [found for path in sorted(folder.glob("*.json")) if (found := record(path))]
    records.sort(key=lambda found: found["date"])
    if file is not None:
        new = record(file)
        if new is None:
            raise ValueError(f"{file} is no record of benchmarks/run.py")
    elif records:
        pairs = (found for found in reversed(records) if same_cases(found, before(found, records)))
        new = next(pairs, records[-1])
    else:
        raise ValueError(
            f"{folder} holds no record; make one with python -m benchmarks.run --quick"
        )
    if against is not None:
        old = record(against)
        if old is None:
            raise ValueError(f"{against} is no record of benchmarks/run.py")
        return new, old
    older = before(new, records)
    if not older:
        raise ValueError(f"{folder} holds no record of the name {new['name']} before {new['date']}")
    return new, (same_cases(new, older) or older)[-1]


def before(new: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a name that are older than its new one, oldest first."""
    return [r for r in records if r["name"] == new["name"] and r["date"] < new["date"]]


def same_cases(new: Mapping[str, Any], older: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were to measure the same cases."""
    return [r for r in older if r.get("cases") == new.get("cases")]


def record(path: Path) -> dict[str, Any] | None:
    """A record of benchmarks/run.py; None for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = ("name", "date", "commit", "machine", "rows")
    return found if isinstance(found, dict) and all(key in found for key in keys) else None


def moves(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Move]:
    """Every ratio of the older record beside that of the newer one."""
    now = {(row["case"], row["peer"]): row for row in new["rows"] if row["status"] == "ok"}
    found = []
    for row in old["rows"]:
        if row["status"] != "ok":
            continue
        match = now.get((row["case"], row["peer"]))
        for clock in CLOCKS:
            what = f"{row['case']}, {row['peer']}, {clock} time"
            ratio, noise = row[f"{clock}_ratio"], row[f"{clock}_noise"]
            after = match[f"{clock}_ratio"] if match else None
            noise += match[f"{clock}_noise"] if match else 0.0
            found.append(Move(what, ratio, after, noise, is_meant(row["case"], new)))
    return found


def is_meant(case: str, new: Mapping[str, Any]) -> bool:
    """Whether a record was to measure a case: one of its list, or any if it was to measure all."""
    cases = new.get("cases")
    return cases is None or any(case == name or case.startswith(f"{name}:") for name in cases)


def line(move: Move) -> str:
    """A move for people."""
    if move.after is None:
        word = "MISSING" if move.is_meant else "not run"
        return f"{word}  {move.what}: {move.before:.3f} before, no such row now"
    word = "WORSE  " if move.is_worse else "better " if move.is_better else "       "
    return f"{word} {move.what}: {move.before:.3f} -> {move.after:.3f} (noise {move.noise:.3f})"


if __name__ == "__main__":
    sys.exit(main())
