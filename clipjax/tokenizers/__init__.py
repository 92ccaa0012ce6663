"""Tokenizers: captions to rows of ids."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from clipjax.building import build
from clipjax.tokenizers.clip_bpe import ClipBPE
from clipjax.tokenizers.sentencepiece import SentencePiece
from clipjax.tokenizers.tokenizer_json import TokenizerJson
from clipjax.tokenizers.wordpiece import WordPiece

TOKENIZERS = {
    "clip_bpe": ClipBPE,
    "sentencepiece": SentencePiece,
    "tokenizer_json": TokenizerJson,
    "wordpiece": WordPiece,
}


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    @property
    def context_length(self) -> int:
        """Ids of a row."""

    @property
    def pad_id(self) -> int:
        """What fills a row up."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""

    def decode(self, ids: Any) -> str:
        """Turns a row of ids into text."""

    def contract(self) -> dict:
        """Identity of the tokenizer, JSON-able: name, SHA-256, ids of the special tokens."""


def end_id_of(contract: Mapping[str, Any]) -> int | None:
    """The id that ends a text, of a tokenizer's contract; None where it has none."""
    specials = contract.get("special_ids") or [None]
    found: int | None = contract.get("end_id", specials[-1])
    return found


def make_tokenizer(
    spec: dict, *, context_length: int, path: str = "tokenizer", plugins: Sequence[str] = ()
) -> Tokenizer:
    """Builds a tokenizer from its spec, e.g. `{"name": "clip_bpe"}`.

    Args:
        spec: name (a key of `TOKENIZERS` or `package.module:Class`) and options.
        context_length: tokens in a row.
        path: where the spec stands in the config, for messages.
        plugins: modules that the name may import, see `clipjax.building.resolve`.

    Raises:
        ValueError: for an unknown name or option.
    """
    return build(spec, TOKENIZERS, path=path, plugins=plugins, context_length=context_length)
