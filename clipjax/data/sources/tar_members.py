"""Which members of a tar shard's record are read, and as what."""

import dataclasses
import functools
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.captions import as_lines, check_how
from clipjax.data.classes.numbers import refuse_shifted
from clipjax.data.source import SampleError
from clipjax.data.sources.fields import group_text, text_of
from clipjax.data.storage.text_files import not_utf8
from clipjax.data.tar.index import (
    IMAGE_EXTENSIONS,
    SUFFIXES,
    TEXT_EXTENSIONS,
    Part,
    Record,
    extensions_of,
)
from clipjax.strict_json import parse_fields

_SEVERAL = "several.npy"  # as what a record's marks of classes are read


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarMembers:
    """The options of a tar source that say how a record is read; they stand at `TarShards`.

    `places` are those of the labels in `class_names`; None where a label is its own. With `several`
    the classes of a record are where its `.npy` is not zero.
    """

    image_field: str | None = None
    text_field: str | Sequence[str] | None = None
    ignore: str | Sequence[str] = ()
    class_names: Sequence[str] | None = None
    first_label: int | None = None
    language: str | None = None
    captions: str | None = None
    key_ends: str = "first_dot"
    places: Sequence[int] | None = None
    group_names: Sequence[str] = ()
    several: bool = False

    def __post_init__(self) -> None:
        check_how(self.captions, "tar")
        if self.key_ends not in SUFFIXES:
            raise ValueError(
                f"key_ends={self.key_ends!r} of tar: allowed are {', '.join(SUFFIXES)}"
            )
        _ = self.texts  # which refuses what is none

    @functools.cached_property
    def ignored(self) -> frozenset[str]:
        """Extensions of members that are not used."""
        return frozenset(extensions_of(self.ignore))

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """Extensions of pictures: the first that a record has is its own."""
        if self.image_field is None:
            return IMAGE_EXTENSIONS
        (name,) = extensions_of(self.image_field)
        return (name, *(f"{name}.{kind}" for kind in IMAGE_EXTENSIONS))

    @functools.cached_property
    def texts(self) -> tuple[tuple[str, str, str | None], ...]:
        """Of each text that is asked for its name, the member's extension, and the field in it."""
        given = self.text_field or ()
        fields = (given,) if isinstance(given, str) else given
        return tuple((name, *_member_and_field(name)) for name in fields)

    @property
    def known(self) -> set[str]:
        """Extensions that a shard may hold."""
        mine = {*self.images, *(extension for _, extension, _ in self.texts)}
        vector = ("npy",) if self.several or self.group_names else ()
        return {*mine, *self.ignored, *IMAGE_EXTENSIONS, *TEXT_EXTENSIONS, *vector}

    @property
    def text_extensions(self) -> tuple[str, ...]:
        """Extensions of members that hold captions; of the default ones, the first counts."""
        return tuple(dict.fromkeys(e for _, e, _ in self.texts)) or ("txt", "json")

    def check_held(self, held: Collection[str], where: str) -> None:
        """Compares the fields with the extensions that the shards hold."""
        for option, found in (
            ("image_field", self.image_field is None or set(self.images) & set(held)),
            ("text_field", not self.texts or {e for _, e, _ in self.texts} & set(held)),
        ):
            if not found:
                value = getattr(self, option)
                is_field = option == "text_field" and "json" in held and isinstance(value, str)
                hint = f"; a field of .json is written {option}=json:{value}" if is_field else ""
                raise ValueError(
                    f"{where} holds no member of {option}={value!r}; it holds the extensions "
                    f"{', '.join(sorted(held))}{hint}"
                )

    def check_extensions(self, extensions: Mapping[str, int], where: str) -> None:
        """Refuses a shard that holds members that are neither used nor declared."""
        unknown = [name for name in extensions if name not in self.known]
        if unknown:
            raise ValueError(
                f"{where} holds {extensions[unknown[0]]} members whose extension {unknown[0]!r} is "
                f"unknown: {self.advice(unknown[:3])}"
            )

    def advice(self, unknown: Sequence[str]) -> str:
        """Says what may be written for members of unknown extensions."""
        what = f"what is not needed is declared: ?ignore={','.join(unknown)}"
        if self.key_ends == "last_dot":
            return f"a key ends at the last dot; {what}"
        last = unknown[0].rpartition(".")[2]
        if last in IMAGE_EXTENSIONS and self.image_field is None:
            what += f"; which is the picture, by ?image_field={unknown[0]}"
        elif last in ("txt", "json") and self.text_field is None:
            what += f"; which is the caption, by ?text_field={unknown[0]}"
        if "." in unknown[0]:
            what += "; where keys hold dots, write ?key_ends=last_dot"
        return f"a key ends at the first dot; {what}"

    def image_of(self, record: Record) -> Part | None:
        """The picture of a record; None if it has none."""
        names = (name for name in self.images if name not in self.ignored)
        return next((record.parts[name] for name in names if name in record.parts), None)

    def wanted(self, record: Record, key: str) -> dict[str, Part]:
        """Chooses the files of a record that are read: `image`, and those of its text and label.

        Raises:
            SampleError: `missing_image`, `several_images` or `missing_text`.
        """
        parts = {name: part for name, part in record.parts.items() if name not in self.ignored}
        image = self.image_of(record)
        if image is None:
            raise SampleError("missing_image", "the shard has no picture of this key", key)
        self._check_one_image(parts, key)
        wanted = {"image": image}
        texts = [name for name in self.text_extensions if name in parts]
        if not self.texts:
            texts = texts[:1]
        if "cls" in parts and (not texts or self.class_names is not None):
            wanted["cls"] = parts["cls"]
        wanted |= {name: parts[name] for name in texts}
        if self.several and "npy" in parts:
            wanted[_SEVERAL] = parts["npy"]
        elif self.group_names and (beside := parts.get("npy", parts.get("json"))):
            wanted["groups.npy" if "npy" in parts else "groups.json"] = beside
        if len(wanted) == 1:
            raise SampleError("missing_text", "the shard has no caption of this key", key)
        return wanted

    def _check_one_image(self, parts: Mapping[str, Part], key: str) -> None:
        names = [name for name in self.images if name in parts]
        named_itself = self.image_field is not None and names[0] == self.images[0]
        if len(names) > 1 and not named_itself:
            raise SampleError(
                "several_images",
                f"the shard has several pictures of this key, .{' and .'.join(names)}: say which "
                f"is none, as by ?ignore={names[-1]}, or which is the picture, by "
                f"?image_field={names[0]}",
                key,
            )

    def text_and_label(self, files: Mapping[str, bytes], key: str) -> dict[str, Any]:
        """Reads `text`, and `label` where there is one, from the files of a record.

        Raises:
            SampleError: `text_encoding`, `json`, `missing_text`, `filtered_language` or `label`.
            LabelError: if the label is one too large, as where classes count from 1.
        """
        found: dict[str, Any] = {"text": ""}
        if "cls" in files:
            found["label"] = self._label(files["cls"], key)
            if self.class_names is not None:
                found["text"] = self.class_names[found["label"]]
        if self.several:
            found["labels"] = self._labels(files, key)
            names = self.class_names or ()
            found["text"] = ", ".join(names[label] for label in found["labels"])
        if self.group_names:
            found["groups"] = self._groups(files, key)
        if self.texts:
            found["text"] = self._text_of_fields(files, key) or found["text"]
        elif "txt" in files:
            found["text"] = _decode(files["txt"], key)
        elif "json" in files:
            found["text"] = _caption_of(_json_of(files["json"], key), key)
        return found

    def finish(self, found: dict[str, Any], key: str) -> dict[str, Any]:
        """Chooses the language of a text, and cuts it into lines, if that is asked for."""
        text = found["text"]
        if self.language is not None:
            text = text_of(text, key, self.language)
        if self.captions == "lines":
            text = as_lines(text)
        return {**found, "text": text}

    def identity(self) -> list[Any]:
        """What belongs to the fingerprint of a source that reads so; nothing by default."""
        named = {
            "image_field": self.image_field,
            "text_field": self.texts or None,
            "first_label": self.first_label or None,
            "captions": self.captions if self.captions == "lines" else None,
            "key_ends": self.key_ends if self.key_ends != "first_dot" else None,
            "places": self.places,
            "group_names": self.group_names or None,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return [given] if given else []

    def _text_of_fields(self, files: Mapping[str, bytes], key: str) -> Any:
        found = {}
        for name, extension, field in self.texts:
            if extension not in files:
                continue
            if extension.rpartition(".")[2] == "json":
                about = _json_of(files[extension], key)
                # By default, what img2dataset calls it.
                found[name] = about.get(field) if field else _caption_of(about, key)
            else:
                found[name] = _decode(files[extension], key)
        if not found:
            return None
        return text_of(next(iter(found.values())) if len(self.texts) == 1 else found, key)

    def _labels(self, files: Mapping[str, bytes], key: str) -> tuple[int, ...]:
        if _SEVERAL not in files:
            raise SampleError("label", "the shard has no .npy with the classes of this key", key)
        marks = _vector(files[_SEVERAL], key)
        places = range(len(self.class_names or ())) if self.places is None else self.places
        if len(marks) != len(places):
            raise SampleError(
                "label", f"the .npy has {len(marks)} marks for {len(places)} classes", key
            )
        return tuple(place for mark, place in zip(marks, places, strict=True) if mark > 0)

    def _groups(self, files: Mapping[str, bytes], key: str) -> dict[str, str]:
        """The groups of a record: the first entries of its `.npy`, or fields of its `.json`."""
        if "groups.npy" in files:
            values = [group_text(value, key) for value in _vector(files["groups.npy"], key)]
            return dict(zip(self.group_names, values, strict=False))
        about = _json_of(files["groups.json"], key) if "groups.json" in files else {}
        return {name: group_text(about.get(name), key) for name in self.group_names}

    def _label(self, content: bytes, key: str) -> int:
        text = content.strip().decode("ascii", errors="replace")
        numbered = self.class_names if self.places is None else self.places
        count = 10**9 if numbered is None else len(numbered)
        # No class has a number of ten digits; Python refuses to read one of 5,000.
        is_number = text.isdecimal() and len(text) <= 9
        label = int(text) - (self.first_label or 0) if is_number else None
        if label is None or not 0 <= label < count:
            refuse_shifted(label, count, self.first_label, key)
            raise SampleError("label", f"the class is {text[:20]!r} of {count:,}", key)
        return label if self.places is None else self.places[label]


def _member_and_field(name: str) -> tuple[str, str | None]:
    """Splits `syn.json:syn_text` into the member's extension and the field of its JSON."""
    extension, colon, field = name.partition(":")
    (extension,) = extensions_of(extension)
    if colon and (not field or extension.rpartition(".")[2] != "json"):
        raise ValueError(
            f"text_field={name!r} of tar: a member, such as `long.txt` or `meta.json`, or a field "
            "of one, such as `json:title`"
        )
    return extension, field or None


def _vector(content: bytes, key: str) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        return np.asarray(found, np.float64).reshape(-1)
    except (ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        raise SampleError("label", f"the .npy is unreadable: {error}", key) from error


def _decode(content: bytes, key: str) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"the caption {not_utf8(error)}", key) from error


def _json_of(content: bytes, key: str) -> dict[str, Any]:
    try:
        about = parse_fields(content)
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        raise SampleError("json", f"the .json is unreadable: {error}", key) from error
    if not isinstance(about, dict):
        raise SampleError("json", f"the .json holds {type(about).__name__}, no object", key)
    return about


def _caption_of(about: Mapping[str, Any], key: str) -> Any:
    captions, caption = about.get("captions"), about.get("caption")
    try:
        return text_of(captions or caption, key)
    except SampleError:
        if not captions or not caption:
            raise
        return text_of(caption, key)  # the other has nothing but blanks
