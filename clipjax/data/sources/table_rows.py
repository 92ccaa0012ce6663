"""Rows of a table: cells between separators, or objects of JSON a line."""

import array
import collections
import csv
import io
from typing import Any, NamedTuple

from clipjax.data.sources.fields import field_of
from clipjax.strict_json import parse_fields

# By the name that an option gives, or the character itself.
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
JSON_LINES = (".jsonl", ".ndjson")
_QUOTED = (
    "a caption with the separator or quotes stands in quotes, its own doubled; is one not closed?"
)


class Rows(NamedTuple):
    """What a table holds.

    Attributes:
        rows: the cells of each row by the name of their column.
        lines: u64, the line of the file that each row begins in.
        ragged: number of cells of each row, by its index, that has not as many as the header.
    """

    rows: list[dict[str, Any]]
    lines: array.array
    ragged: dict[int, int]


def read_rows(text: str, suffix: str, separator: str | None, where: str) -> Rows:
    """Reads a table.

    Raises:
        ValueError: if it is damaged, or the separator is another.
    """
    if suffix in JSON_LINES:
        if separator is not None:
            raise ValueError(
                f"{where} holds JSON lines: separator={separator!r} is of no use there"
            )
        return _read_json_lines(text, where)
    if separator is None and suffix not in (".csv", ".tsv"):
        raise ValueError(
            f"{where} ends in {suffix!r}; a table is .csv, .tsv or .jsonl, or says its separator: "
            f"?separator={'|'.join(SEPARATORS)}"
        )
    if separator is None:
        character = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    else:
        character = SEPARATORS.get(separator, separator)
    if character not in SEPARATORS.values():
        raise ValueError(
            f"separator={separator!r} of {where}: allowed are {', '.join(SEPARATORS)}, or the "
            "character itself"
        )
    return _read_cells(text, character, where)


def _read_json_lines(text: str, where: str) -> Rows:
    rows, lines = [], array.array("Q")
    # Not splitlines(): JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = parse_fields(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}, line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}, line {number} is {type(row).__name__}, no object")
            rows.append(row)
            lines.append(number)
    return Rows(rows, lines, {})


def _read_cells(text: str, separator: str, where: str) -> Rows:
    # A quote that is not closed would take the rest of the file for one cell.
    how: dict[str, Any] = {"strict": True}
    mend = _QUOTED
    if separator in "\t|":  # quotes are text there
        how = {"quoting": csv.QUOTE_NONE}
        mend = f"a caption holds no {'tab' if separator == chr(9) else separator}"
    # Flickr30k's own file, which is written so, has blanks beside it, and one row without it.
    loose = separator == "|"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, **how)
    header: list[str] = []
    rows: list[dict[str, str]] = []
    lines, line = array.array("Q"), 1
    ragged: dict[int, int] = {}
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells] if loose else cells
            if cells and not header:
                header = cells
                _check_separator(header, where)
                counts = collections.Counter(filter(None, header))  # several may have none
                for name in [name for name, count in counts.items() if count > 1][:1]:
                    field_of(header, name, (), "text_field", where)  # says so
            elif cells:
                if len(cells) != len(header):
                    if not loose:
                        raise ValueError(
                            f"{where}, line {line} has {len(cells)} cells, its header "
                            f"{len(header)}: {mend}"
                        )
                    ragged[len(rows)] = len(cells)
                rows.append(dict(zip(header, cells, strict=False)))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{where}, in the row of line {line}: {error}; {mend}") from error
    return Rows(rows, lines, ragged)


def _check_separator(header: list[str], where: str) -> None:
    """Refuses a header that another separator would split."""
    if len(header) > 1:
        return
    other = next((name for name, mark in SEPARATORS.items() if mark in header[0]), None)
    if other is not None:
        raise ValueError(
            f"{where} has one column, {header[0]!r:.80}: the separator of .csv is `,`, that of "
            f".tsv is a tab; if it is `{SEPARATORS[other]}`, write ?separator={other} in the SPEC"
        )
