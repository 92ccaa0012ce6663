"""Emoji by code points: their names in 14 languages, and the tenth that is never trained on.

The splits are those of code points, so they are the same whoever drew them.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from clipjax.files import sha256

SPLITS = ("train", "fit", "validation", "unseen", "all")
LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")


class Emoji(NamedTuple):
    """One pair: code points as OpenMoji's file names them, names by language, English aliases."""

    codepoints: str
    names: dict[str, str]
    aliases: tuple[str, ...]


def is_unseen(codepoints: str) -> bool:
    """Whether a drawing belongs to the tenth that is never trained on.

    It does if the SHA-256 of its code points lies in the lowest tenth of all values: 392 of 3,944.
    """
    return "unseen" in splits_of(codepoints)


def splits_of(codepoints: str) -> tuple[str, ...]:
    """The splits that a drawing belongs to, by the tenth of all values its SHA-256 lies in."""
    tenth = int(sha256(codepoints), 16) // (2**256 // 10)
    if tenth == 0:
        return "unseen", "all"
    return "validation" if tenth == 1 else "fit", "train", "all"


def has_skin_tone(codepoints: str) -> bool:
    """Whether a drawing is one of the five variants of another."""
    return any(0x1F3FB <= int(code, 16) <= 0x1F3FF for code in codepoints.split("-"))


def list_emoji(drawn: Collection[str]) -> list[Emoji]:
    """Lists the fully-qualified emoji among those drawn, by code point.

    Args:
        drawn: code points as OpenMoji's file names have them, `1F469-1F3FC`.
    """
    emoji = demo_package("emoji")
    emoji.config.load_language()  # without it, only the English names are there
    pairs = []
    for symbol, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"]:
            continue
        codepoints = [f"{ord(character):04X}" for character in symbol]
        # OpenMoji leaves out the variation selector in most file names, not in all.
        candidates = ("-".join(codepoints), "-".join(c for c in codepoints if c != "FE0F"))
        found = next((c for c in candidates if c in drawn), None)
        if found:
            names = {language: _plain(data[language]) for language in LANGUAGES}
            aliases = (_plain(alias) for alias in data.get("alias", ()))
            lowered = names["en"].lower()
            pairs.append(Emoji(found, names, tuple(a for a in aliases if a.lower() != lowered)))
    return sorted(pairs)


def demo_package(name: str) -> ModuleType:
    """Imports a package of the extra `[demo]`; ValueError says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name) from error


def demo_folder(package: str, folder: str) -> Path:
    """Finds a folder of files in a package of the extra `[demo]`, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0]) / folder


def demo_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Finds the versions of distributions of the extra `[demo]`."""
    try:
        return {name: importlib.metadata.version(name) for name in distributions}
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(error.name) from error


def _missing(package: str) -> ValueError:
    return ValueError(f"drawings of emoji need the package {package}: pip install clipjax[demo]")


def _plain(name: str) -> str:
    return name.strip(":").replace("_", " ")
