"""All rows of the fault matrix: `row_*.py` beside this file, each with its ROWS."""

import importlib
from pathlib import Path

from tests.faults.row import Row


def all_rows() -> dict[str, Row]:
    """Rows by name, in the order of their names."""
    rows: list[Row] = []
    for path in sorted(Path(__file__).parent.glob("row_*.py")):
        rows += importlib.import_module(f"tests.faults.{path.stem}").ROWS
    names = [row.name for row in rows]
    assert len(names) == len(set(names)), f"two rows have one name: {names}"
    return dict(sorted((row.name, row) for row in rows))
