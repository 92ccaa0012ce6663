"""CLIP's byte-pair encoding, with the ids of the published implementation."""

import functools
import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
from tokenizers import models

from clipjax.files import sha256
from clipjax.tokenizers.added_tokens import AddedTokens
from clipjax.tokenizers.cleaning import collapse_whitespace, contract_of, fix_text
from clipjax.tokenizers.pieces import WORD, by_role

VOCABULARY = Path(__file__).parent / "vocabularies" / "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
NUM_MERGES = 48_894
END_OF_WORD = "</w>"
# Words met once are not worth keeping for ever: web text never stops bringing new ones.
MAX_REMEMBERED_WORDS = 1 << 20

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ASCII_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"


def clean_text(text: str) -> str:
    """Cleans a caption by the published rules: mojibake, HTML entities, white space, case."""
    return collapse_whitespace(fix_text(text)).lower()


# The vocabulary's order of the 256 bytes: printable ones first. Each byte is written as one
# printable character, the others as those from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_ORDER = _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(68)]
_SYMBOL_OF_BYTE = dict(zip(_BYTE_ORDER, _BYTE_SYMBOLS, strict=True))


@functools.cache
def load_merges() -> tuple[tuple[str, str], ...]:
    """Reads the shipped merges, best first, and verifies the file's SHA-256.

    Raises:
        ValueError: if the file is not the published one.
    """
    packed = VOCABULARY.read_bytes()
    found = sha256(packed)
    if found != VOCABULARY_SHA256:
        raise ValueError(
            f"{VOCABULARY} is damaged: its SHA-256 is {found}, expected {VOCABULARY_SHA256}. "
            "Install clipjax again."
        )
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    # Line 0 is a header; the file holds more merges than the published models use.
    pairs = (line.split() for line in lines[1 : 1 + NUM_MERGES])
    return tuple((first, second) for first, second in pairs)


@functools.cache
def own_symbols() -> tuple[str, ...]:
    """The vocabulary in the order of the ids, without the two special symbols."""
    ends = (symbol + END_OF_WORD for symbol in _BYTE_SYMBOLS)
    return (*_BYTE_SYMBOLS, *ends, *map("".join, load_merges()))


def text_of_symbol(symbol: str, mark: str, *, at_end: bool) -> str:
    """What a symbol of bytes stands for: `▁cat` where it has the mark of a word.

    Args:
        symbol: of a byte-level vocabulary.
        mark: of a word.
        at_end: whether the mark ends a word, or begins it.
    """
    text = symbol.removesuffix(mark) if at_end else symbol.removeprefix(mark)
    if not text:
        return symbol
    bytes_of = dict(zip(_BYTE_SYMBOLS, _BYTE_ORDER, strict=True))
    word = WORD if text != symbol else ""
    try:
        return word + bytes(bytes_of[character] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):  # a part of a letter, or a token that is no bytes
        return symbol


@functools.cache
def byte_pairs() -> models.BPE:
    """Joins a word's neighbours, the best-ranked pair first and its places from left to right.

    The published code joins all places of a pair before it looks for the next pair. That is the
    same here: no pair ranks before the pairs that its two symbols are made of.
    """
    ids = {symbol: number for number, symbol in enumerate(own_symbols())}
    merges = list(load_merges())
    return models.BPE(ids, merges, end_of_word_suffix=END_OF_WORD, cache_capacity=0)


class ClipBPE:
    """The tokenizer of CLIP: cleaned lower-case text, byte-pair encoding, 49,408 ids.

    A row is `[start, words..., end, 0, ...]`; a longer caption is cut and keeps its end token.

    Args:
        context_length: tokens in a row.
        start_token, end_token: how the two special tokens are spelled in text. The ids are the
            same in every implementation; openai/CLIP spells them as here, open_clip writes
            `<start_of_text>` and `<end_of_text>`.
        added_tokens: `(token, id, normalized)` of tokens added to the vocabulary: `AddedTokens`.

    Raises:
        ValueError: if the context has no room for the two special tokens, or `added_tokens` holds
            something else.

    Reference: arXiv:2103.00020; https://github.com/openai/CLIP, clip/simple_tokenizer.py.
    """

    pad_id = 0

    def __init__(
        self,
        *,
        context_length: int = 77,
        start_token: str = "<|startoftext|>",
        end_token: str = "<|endoftext|>",
        added_tokens: Iterable[Sequence[Any]] = (),
    ):
        if context_length < 3:
            raise ValueError(f"context_length is {context_length}: at least 3 tokens are needed")
        self.context_length = context_length
        self.start_token, self.end_token = start_token, end_token
        self._symbols = [*own_symbols(), start_token, end_token]
        self._added = AddedTokens(added_tokens, len(self._symbols))
        self.start_id, self.end_id = len(self._symbols) - 2, len(self._symbols) - 1
        specials = {start_token: [self.start_id], end_token: [self.end_id]}
        self._specials = specials
        self.remembered: dict[str, list[int]] = dict(specials)
        special = "|".join(map(re.escape, specials))
        # Two patterns, one language: `re` reads plain ASCII about three times faster.
        self._split = regex.compile(f"{special}|{_WORDS}", regex.IGNORECASE).findall
        self._split_ascii = re.compile(f"{special}|{_ASCII_WORDS}").findall

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of added tokens included."""
        return max([len(self._symbols) - 1, *self._added.names]) + 1

    @property
    def symbols(self) -> tuple[str, ...]:
        """The vocabulary in the order of the ids; the last two are special, and none is added."""
        return tuple(self._symbols)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions.

        Args:
            texts: `[batch]` captions.

        Returns:
            Ids `[batch, length]`, int32, padded with 0.

        Raises:
            ValueError: if `texts` is one string, or holds something else than strings.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string: pass a list of captions")
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        room = self.context_length - 2
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text, room)
            row[0] = self.start_id
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end_id
        return tokens

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Encodes one caption without special tokens, stopping after `limit` ids."""
        if not isinstance(text, str):
            raise ValueError(f"a caption is {type(text).__name__}, expected str: {text!r}")
        if not self._added.entries:
            return self._encode_clean(clean_text(text), limit)
        ids: list[int] = []
        for piece in self._added.split(text, clean_text):
            ids += [piece] if isinstance(piece, int) else self._encode_clean(piece, limit)
        return ids[:limit]

    def _encode_clean(self, text: str, limit: int | None) -> list[int]:
        words = self._split_ascii(text) if text.isascii() else self._split(text)
        known, ids = self.remembered, []
        for word in words:
            ids += known.get(word) or self._encode_word(word)
            if limit is not None and len(ids) >= limit:
                return ids[:limit]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turns a row of ids into text, up to the end token."""
        text = ""
        for number in ids:
            if number == self.end_id:
                break
            if number in self._added.names:
                # Its letters are their own symbols, so that what stands for bytes below is theirs.
                token = self._added.names[number].encode("utf-8")
                text += "".join(map(_SYMBOL_OF_BYTE.__getitem__, token)) + " "
            elif number != self.start_id:
                symbol = self._symbols[number]
                ends = symbol.endswith(END_OF_WORD) and len(symbol) > len(END_OF_WORD)
                text += symbol.removesuffix(END_OF_WORD) + " " if ends else symbol
        bytes_of = dict(zip(_BYTE_SYMBOLS, _BYTE_ORDER, strict=True))
        # A plain space stands between words only: inside one, it has a symbol of its own.
        packed = bytes(bytes_of.get(character, 32) for character in text)
        return packed.decode("utf-8", errors="replace").rstrip(" ")

    def pieces(self) -> dict[str, int]:
        """The ids of the tokens by what they stand for, see `clipjax.tokenizers.pieces`."""
        found: dict[str, int] = {}
        for number, symbol in enumerate(self._symbols[: self.start_id]):
            text = text_of_symbol(symbol, END_OF_WORD, at_end=True)
            found[symbol if text in found else text] = number
        return by_role(found, start=self.start_id, end=self.end_id)

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        added = [list(entry) for entry in self._added.entries]
        fields = ("start_id", "end_id", "start_token", "end_token")
        known = contract_of(self, "clip_bpe", VOCABULARY_SHA256, *fields)
        known |= {"end_kept_when_cut": True, "lower_case": True}
        return {**known, "added_tokens": added} if added else known

    def _encode_word(self, word: str) -> list[int]:
        ids = self._specials.get(word.lower())
        if ids is None:
            text = "".join(_SYMBOL_OF_BYTE[byte] for byte in word.encode("utf-8"))
            ids = [token.id for token in byte_pairs().tokenize(text)]
        if len(self.remembered) >= MAX_REMEMBERED_WORDS:
            self.remembered = dict(self._specials)
        self.remembered[word] = ids
        return ids
