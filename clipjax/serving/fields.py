"""The fields of a request: read, decoded, and held to the limits."""

import base64
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qs

from clipjax.encoding.templates import known_templates
from clipjax.serving.limits import Limits, RefusedError
from clipjax.strict_json import parse_json

_JSON = "application/json"
# A picture in JSON is one text. What holds more than so many values takes memory, and asks for
# nothing: each may be 60 times as large in memory as it is in the text.
_MAX_VALUES = 100_000


def parse(body: bytes, content_type: str, query: str, names: Collection[str]) -> dict[str, Any]:
    """Reads the fields of a request: JSON, or a picture as the body and the rest in the address.

    Args:
        names: of the fields that there are.

    Raises:
        RefusedError: it is none of both, or has other fields.
    """
    kind = content_type.partition(";")[0].strip().lower()
    found: Any
    if kind.startswith("image/") and "image" in names:
        try:
            given = parse_qs(query, errors="strict", keep_blank_values=True)
        except ValueError as error:
            raise RefusedError(400, "the address holds what is no UTF-8, or too much") from error
        if "image" in given:
            raise RefusedError(400, "image is the body here: leave it out of the address")
        found = {name: v if v[1:] else v[0] for name, v in given.items()}
        if "labels" in given:  # however often they are given, commas part them
            found["labels"] = ",".join(given["labels"])
        found["image"] = body
    elif kind == _JSON:
        if query:
            raise RefusedError(
                400, f"with {_JSON} all fields stand in the body: leave them out of the address"
            )
        found = _json(body)
    else:
        raise RefusedError(
            415, f"send {_JSON}, or a picture with its own Content-Type, as image/jpeg"
        )
    if unknown := found.keys() - set(names):
        raise RefusedError(
            400, f"unknown field {min(unknown)!r:.80}; there are {', '.join(sorted(names))}"
        )
    return found


def _json(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise RefusedError(413, f"the JSON holds more than {_MAX_VALUES:,} values")
    try:
        found = parse_json(body)
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON that is taken: {error!s:.200}") from error
    if not isinstance(found, dict):
        raise RefusedError(400, 'the body is to be an object of JSON, {"name": value}')
    return found


class Fields:
    """What a request asks for.

    Args:
        given: its fields, as they came.
        limits: which they are held to.
    """

    def __init__(self, given: Mapping[str, Any], limits: Limits) -> None:
        self._given, self._limits = given, limits

    def picture(self) -> bytes | None:
        """The bytes of `image`, None where there is none.

        Raises:
            RefusedError: it is no text of base64, or empty.
        """
        given = self._given.get("image")
        if given is None:
            return None
        try:
            data = given if isinstance(given, bytes) else base64.b64decode(given, validate=True)
        except (ValueError, TypeError) as error:
            raise RefusedError(400, "image is to be a text of base64, of a picture file") from error
        if not data:
            raise RefusedError(400, "image is empty")
        return data

    def texts(self, name: str, most: int) -> list[str]:
        """The texts of a field, which may be one text; without blanks around them.

        Raises:
            RefusedError: it is something else, too many or too long.
        """
        given = self._given.get(name, [])
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise RefusedError(400, f"{name} is to be a text or a list of texts")
        if len(listed) > most:
            raise RefusedError(400, f"{name} holds {len(listed):,} texts, allowed are {most:,}")
        for text in listed:
            self._check(name, text)
        return [text.strip() for text in listed]

    def _check(self, name: str, text: str) -> None:
        if not text.strip():
            raise RefusedError(400, f"{name} holds an empty text")
        if len(text) > self._limits.characters:
            raise RefusedError(
                400,
                f"{name} holds a text of {len(text):,} characters, allowed are "
                f"{self._limits.characters:,}",
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RefusedError(400, f"{name} holds a surrogate without its other half") from error

    def labels(self) -> list[str]:
        """The labels, of one text those between its commas; each another one.

        Raises:
            RefusedError: there are none, two are equal, or they are too many or too long.
        """
        given = self._given.get("labels")
        if isinstance(given, str):
            # The limits on a text are those of each label.
            parts = [part for part in given.split(",") if part.strip()]
            return Fields({"labels": parts}, self._limits).labels()
        labels = self.texts("labels", self._limits.labels)
        if not labels:
            raise RefusedError(400, "labels is missing: give them as 'cat, dog'")
        seen: set[str] = set()
        for label in labels:
            if label in seen:
                raise RefusedError(400, f"the label {label!r:.80} stands twice")
            seen.add(label)
        return labels

    def templates(self) -> str | tuple[str, ...] | None:
        """The name of templates, or templates; None where there are none.

        Raises:
            RefusedError: an unknown name, or too many or too long ones.
        """
        given = self._given.get("templates")
        if given is None or given == "":
            return None
        # The library takes a name for a file's where it knows none: not from here.
        if isinstance(given, str) and given in known_templates():
            return given
        templates = self.texts("templates", self._limits.templates)
        if isinstance(given, str) and "{" not in given:
            raise RefusedError(
                400,
                f"templates is {given!r:.80}, neither a known name, as 'openai_80' or 'plain', nor "
                "a text with {} where the label goes",
            )
        return tuple(templates) or None

    def top(self, pictures: int, default: int = 20) -> int:
        """How many results of so many pictures are asked for; by default 20, or all of fewer.

        Raises:
            RefusedError: no whole number, or too many.
        """
        most = min(pictures, self._limits.results)
        given = self._given.get("top", min(default, most))
        if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) < 10:
            given = int(given)  # of an address
        if type(given) is not int or not 1 <= given <= most:
            raise RefusedError(
                400,
                f"top is {given!r:.80}: ask for a whole number from 1 to {most}, of "
                f"{pictures:,} pictures",
            )
        return given
