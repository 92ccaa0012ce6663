"""Tokens that were added to a tokenizer, in whichever of its files they stand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.interop.section import read_json
from clipjax.interop.tensors import WeightFileError

JSON, CONFIG, LEGACY = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


def added_tokens(path: Path, vocabulary: Sequence[str]) -> list[list[Any]]:
    """Gives the tokens of a directory that are not of the vocabulary, by their ids.

    Returns:
        `[token, id, normalized]` each, as `clipjax.tokenizers.added_tokens` takes them.

    Raises:
        WeightFileError: an entry is damaged, the files contradict each other or the vocabulary, or
            a token is to be found as a whole word only, which is not supported.
    """
    found: dict[int, tuple[str, bool]] = {}
    # The last file says what the ones before it may not: how a token is found.
    for name in (LEGACY, CONFIG, JSON):
        for number, (token, normalized) in _entries(path / name).items():
            if number in found and found[number][0] != token:
                raise WeightFileError(
                    f"{path / name}: id {number} is {token!r}, another file has "
                    f"{found[number][0]!r}"
                )
            found[number] = token, normalized
    added = []
    for number, (token, normalized) in sorted(found.items()):
        if number >= len(vocabulary):
            added.append([token, number, normalized])
        elif vocabulary[number] != token:
            raise WeightFileError(
                f"{path}: the added token {token!r} has the id {number}, which is "
                f"{vocabulary[number]!r} in the vocabulary"
            )
    return added


def decoder_entry(token: str, normalized: bool) -> dict[str, Any]:
    """The entry of a token in `added_tokens_decoder`."""
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": token, **flags, "normalized": normalized, "special": not normalized}


def _entries(file: Path) -> dict[int, tuple[str, bool]]:
    """Id -> token and whether it is looked for in the normalized text."""
    if not file.is_file():
        return {}
    content = read_json(file)
    try:
        if file.name == LEGACY:
            entries = [{"id": number, "content": token} for token, number in content.items()]
        elif file.name == CONFIG:
            decoder = content.get("added_tokens_decoder") or {}
            entries = [{**entry, "id": int(number)} for number, entry in decoder.items()]
        else:
            entries = list(content.get("added_tokens") or ())
        return dict(_entry(entry, file) for entry in entries)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(f"{file}: its added tokens are damaged: {error!r}") from error


def _entry(entry: Mapping[str, Any], file: Path) -> tuple[int, tuple[str, bool]]:
    token, number = entry["content"], entry["id"]
    if not isinstance(token, str) or not token.strip() or type(number) is not int or number < 0:
        raise WeightFileError(f"{file}: {dict(entry)!r:.80} is no added token")
    if entry.get("single_word"):
        raise WeightFileError(
            f"{file}: {token!r} is found as a whole word only (single_word), which is not supported"
        )
    return number, (token, bool(entry.get("normalized", not entry.get("special", False))))
