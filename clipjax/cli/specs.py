"""Lists of SPECs on the command line."""

import re
from collections.abc import Iterable

_CLOSING = {"{": "}", "[": "]"}
# What a comma has to be followed by to end a SPEC: the kind of the next one.
_KIND = re.compile(r"\s*[a-z_]+:(?!//)")


def split_specs(given: Iterable[str]) -> list[str]:
    """Splits the values of a flag, which may be repeated, at the commas between SPECs.

    A comma stands between two SPECs where the kind of another follows, as in
    `tar:a/{0000..0003}.tar,folder:x`; inside braces and brackets, or in an option, as in
    `?class_names=cat,dog`, it belongs to its SPEC.
    """
    return [spec for text in given for spec in _split(text) if spec]


def _split(text: str) -> list[str]:
    parts, start, open_ = [], 0, []
    for place, character in enumerate(text):
        if character in _CLOSING:
            open_.append(_CLOSING[character])
        elif open_ and character == open_[-1]:
            open_.pop()
        elif character == "," and not open_ and _KIND.match(text, place + 1):
            parts.append(text[start:place].strip())
            start = place + 1
    if open_:
        raise ValueError(f"{text!r} opens a bracket that is not closed: {open_[-1]!r} is missing")
    return [*parts, text[start:].strip(" ,")]
