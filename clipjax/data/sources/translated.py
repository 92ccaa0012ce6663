"""Pictures with captions in many languages, as Crossmodal-3600 and XTD10 publish them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clipjax.data.source import Example
from clipjax.data.sources.fields import text_of
from clipjax.data.sources.folder import read_named, root_identity
from clipjax.data.storage.files import read_given
from clipjax.data.storage.paths import data_path
from clipjax.data.storage.text_files import decode_text
from clipjax.files import sha256
from clipjax.strict_json import parse_fields


class _Translated:
    """Base: names of pictures, and of each a map from language to captions."""

    class_names = None
    captions = "whole"
    _names: list[str]
    _texts: list[Mapping[str, Any]]
    _language: str | None

    def _open(self, where: str, root: str | None, folder: str, identity: list[Any]) -> None:
        parent = data_path(where).parent
        self._root = data_path(root) if root else parent / folder
        identity.append(root_identity(self._root, parent))
        self._fingerprint = sha256(json.dumps([*identity, self._names, self._texts]))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        key = self._names[index]
        text = text_of(self._texts[index], key, self._language)
        return {"image": read_named(self._root, key, key), "text": text, "key": key}

    def keys(self) -> Iterator[str]:
        """Gives the keys of all examples in order."""
        return iter(self._names)

    def fingerprint(self) -> str:
        """SHA-256 of names and captions, of the language, and of how `root` lies to the file."""
        return self._fingerprint


class Crossmodal3600(_Translated):
    """The pictures of `captions.jsonl` of Crossmodal-3600 (arXiv:2205.12522), with all captions.

    Each line holds `image/key`, and for each language an object with a list `caption`.

    Args:
        where: the file.
        language: which captions are used; by default all, as a map.
        root: folder of the pictures `KEY.jpg`; by default `images` beside the file.
    """

    def __init__(self, where: str, *, language: str | None = None, root: str | None = None):
        self._names, self._texts, self._language = [], [], language
        text = decode_text(read_given(where), where).rstrip()
        # By line feeds alone: a caption may hold other line ends.
        for number, line in enumerate(text.split("\n") if text else (), start=1):
            try:
                row = parse_fields(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}, line {number} is no JSON: {error}") from error
            key = row.get("image/key") if isinstance(row, dict) else None
            if not isinstance(key, str) or not key:
                raise ValueError(
                    f"{where}, line {number} has no `image/key`: is it captions.jsonl?"
                )
            self._names.append(f"{key}.jpg")
            self._texts.append(
                {
                    name: about["caption"]
                    for name, about in row.items()
                    if isinstance(about, dict) and about.get("caption")
                }
            )
        _check(where, self._names, self._texts, language)
        self._open(where, root, "images", ["xm3600/1", language])


class Xtd10(_Translated):
    """The 1,000 pictures of XTD10 (arXiv:2012.05107), one caption a language.

    Beside `test_image_names.txt` stand `test_1kcaptions_LANG.txt`, a line a picture.

    Args:
        where: `test_image_names.txt`.
        language: whose captions are read.
        root: folder of the pictures; by default `images` beside the file.
    """

    def __init__(self, where: str, *, language: str = "en", root: str | None = None):
        self._names = _lines(where)
        self._language = language
        captions = str(data_path(where).parent / f"test_1kcaptions_{language}.txt")
        texts = _lines(captions)
        if len(texts) != len(self._names):
            raise ValueError(
                f"{captions} has {len(texts)} captions, and {where} {len(self._names)} pictures: "
                "fetch them again"
            )
        self._texts = [{language: text} for text in texts]
        _check(where, self._names, self._texts, language)
        self._open(where, root, "images", ["xtd10/1", language])


def _lines(where: str) -> list[str]:
    text = decode_text(read_given(where), where).rstrip("\n")
    return [line.strip() for line in text.split("\n")] if text else []


def _check(
    where: str, names: list[str], texts: list[Mapping[str, Any]], language: str | None
) -> None:
    if not names:
        raise ValueError(f"{where} names no picture")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where} names the picture {twice!r} twice")
    known = sorted({name for text in texts for name in text})
    if language is not None and language not in known:
        raise ValueError(f"{where} has no captions in {language!r}; it has {', '.join(known)}")
