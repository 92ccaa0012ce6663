"""The tokens of a vocabulary by what they stand for, so that two vocabularies can be compared.

Each kind marks words in its own way: WordPiece what goes on, `##ing`; SentencePiece and byte-level
BPE what begins a word, `▁cat`, and CLIP what ends one, `cat</w>`. Here all of these are `▁cat`, a
token that can be a whole word, and `ing`, one inside of words.
"""

from collections.abc import Mapping
from typing import Any

WORD = "▁"
START, END, PAD = "<start>", "<end>", "<pad>"


def pieces_of(tokenizer: Any) -> dict[str, int]:
    """The ids of a tokenizer's tokens by what they stand for; special ones by their role.

    Raises:
        ValueError: the tokenizer has no method `pieces`.
    """
    if not hasattr(tokenizer, "pieces"):
        raise ValueError(
            f"{type(tokenizer).__name__} does not say its vocabulary: it needs a method "
            "pieces() -> {token: id}, `▁cat` being a word and `ing` a part of one"
        )
    return dict(tokenizer.pieces())


def by_role(found: Mapping[str, int], **roles: int | None) -> dict[str, int]:
    """Pieces with those of a role under its name alone.

    Args:
        found: pieces as they are spelled.
        **roles: `start`, `end` and `pad`: their ids, or None. Of two roles of one id the first
            counts.
    """
    special: dict[int, str] = {}
    for role, number in roles.items():
        if number is not None:
            special.setdefault(number, f"<{role}>")
    kept = {piece: number for piece, number in found.items() if number not in special}
    return {**kept, **{role: number for number, role in special.items()}}
