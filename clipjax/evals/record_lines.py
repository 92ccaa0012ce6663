"""A file with what an evaluation found of each example: JSON, one object a line."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from clipjax.data.storage.files import check_writable, write
from clipjax.data.storage.paths import data_path
from clipjax.processes.distributed import gather, is_lead
from clipjax.ranges import Optional, Text

OUTPUT = Optional(Text("a file to write", may_be_empty=False), "none")


def check_output(output: str | None, field: str) -> None:
    """Tries whether the lead can write a file, before the work; all processes raise together.

    Args:
        output: its path, if there is one.
        field: what names it, for the message.
    """
    problem = None
    if output and is_lead():
        try:
            check_writable(data_path(output))
        except ValueError as error:
            problem = f"{field}: {error}"
    problem = gather(problem)[0]
    if problem:
        raise ValueError(problem)


def write_lines(output: str | None, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the records, by the lead, whole or not at all."""
    if output and is_lead():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        write(data_path(output), text.encode("utf-8"))
