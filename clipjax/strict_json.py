"""JSON from files that somebody else may have written: one meaning, and bounds on what it costs.

Python's reader lets the second of two equal keys win, takes NaN, and goes as deep as the stack.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
_MAX_DIGITS = 32  # of a whole number; those of 64 bits have 20


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Reads a file of JSON; no more of it than is allowed, whatever it says its size is.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_json`.
    """
    with path.open("rb") as file:
        return parse_json(file.read(max_bytes + 1), max_bytes=max_bytes)


def parse_json(data: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Parses JSON.

    Raises:
        ValueError: one sentence without the file's name: too large, too deep, no JSON, a key that
            stands twice, or a number that is not finite or has more digits than any field takes.
    """
    if len(data) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_without_twice,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short,
        )
        too_deep = _is_deeper(found, MAX_DEPTH)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return found


def parse_fields(data: bytes | str) -> Any:
    """Parses JSON of a single record, or of a size that nothing bounds, and takes NaN.

    Raises:
        ValueError: no JSON, or a key that stands twice.
        RecursionError: it is too deep.
    """
    return json.loads(data, object_pairs_hook=_without_twice)


def _without_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r:.100} stands twice")
    return fields


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [outer for outer in level if isinstance(outer, dict | list)]
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return True
