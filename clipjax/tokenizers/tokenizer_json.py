"""Hugging Face's `tokenizer.json` files, of any kind, and what they share with WordPiece."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from clipjax.files import sha256
from clipjax.ranges import FieldError
from clipjax.tokenizers.cleaning import Cleaner
from clipjax.tokenizers.clip_bpe import text_of_symbol
from clipjax.tokenizers.pieces import WORD, by_role

# How the padding token is spelled, where a file does not say which one it is.
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>")
MAX_BYTES = 1 << 28
_BYTE_SPACE = "Ġ"  # how byte-level vocabularies write the space before a word
# How many times longer a file's replacements may make a caption; published ones write 3 bytes.
_MAX_GROWTH = 1 << 10


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    """Has what the library raises for a file or a text end as one sentence.

    It raises plain Exception, and where its Rust panics, an error that is no Exception.

    Raises:
        ValueError: with what the library says.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {error}") from error


class BackedTokenizer:
    """Rows of ids from a `tokenizers.Tokenizer`: cleaned, cut, with its special tokens, padded.

    Attributes:
        vocab_size: number of ids, added tokens included.

    Raises:
        ValueError: if the context has no room, an id is none, or a step is unknown.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        context_length: int,
        pad_id: int,
        cleaning: Sequence[str] = (),
    ):
        with _library("the tokenizer's special tokens cannot be used"):
            specials = backend.num_special_tokens_to_add(False)
        if context_length <= specials:
            raise ValueError(
                f"context_length is {context_length}: at least {specials + 1} tokens are needed"
            )
        self.backend = backend
        ids = list(backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(ids, default=-1) + 1  # more than there are, where some are left out
        if not 0 <= pad_id < self.vocab_size:
            raise ValueError(f"pad_id is {pad_id}: the ids are 0..{self.vocab_size - 1}")
        self.context_length, self.pad_id = context_length, pad_id
        # Whatever a file says of these two was meant for another context.
        with _library("the tokenizer cannot encode an empty text"):
            backend.enable_truncation(max_length=context_length)
            backend.no_padding()
            self.special_ids = backend.encode("").ids
        largest = max(*self.special_ids, *ids, 0, 0)
        if largest >= 1 << 31 or largest >= self.vocab_size:
            raise ValueError(f"the tokenizer gives the id {largest}, which is none of a vocabulary")
        self._clean = Cleaner(cleaning)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""
        texts = self._clean(texts)
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        # Not encode_batch: its threads would compete with the loader's, and die in a fork.
        for row, text in zip(tokens, texts, strict=True):
            with _library(f"a caption cannot be encoded, {text!r:.80}"):
                ids = self.backend.encode(text).ids
            row[: len(ids)] = ids
        return tokens

    def pieces(self) -> dict[str, int]:
        """The ids of the tokens by what they stand for, see `clipjax.tokenizers.pieces`."""
        spelled = self.backend.get_vocab(with_added_tokens=True)
        if any(piece.startswith(WORD) for piece in spelled):
            found = spelled
        elif any(piece.startswith(_BYTE_SPACE) for piece in spelled):
            found = {text_of_symbol(p, _BYTE_SPACE, at_end=False): n for p, n in spelled.items()}
        else:
            found = {p[2:] if p.startswith("##") else WORD + p: n for p, n in spelled.items()}
        for number, token in self.backend.get_added_tokens_decoder().items():
            if token.special:  # no text: it is in <>, as those of a role are
                found = {p: n for p, n in found.items() if n != number}
                found[f"<{token.content.strip('<>')}>"] = number
        start = self.special_ids[0] if self.special_ids else None
        end = self.special_ids[-1] if len(self.special_ids) > 1 else None
        return by_role(found, start=start, end=end, pad=self.pad_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Turns a row of ids into text, without special tokens."""
        with _library("ids cannot be decoded"):
            return self.backend.decode([int(number) for number in ids], skip_special_tokens=True)


class TokenizerJson(BackedTokenizer):
    """The tokenizer of a `tokenizer.json` file, such as XLM-RoBERTa's.

    Normalization, splitting, model and special tokens are the file's; its truncation and padding
    are replaced by a row of `context_length` ids, cut so that the special tokens stay.

    Args:
        model: path of the file (local or a bucket).
        context_length: tokens in a row.
        pad_id: id that fills a row; by default the one that the file pads with, else that of its
            `<pad>` or `[PAD]`.
        cleaning: steps of `clipjax.tokenizers.cleaning` before the file's own normalization;
            OpenCLIP's are `("fix_text", "collapse_whitespace")`.

    Raises:
        ValueError: if there is no such file, it is no tokenizer.json, it names no padding token and
            `pad_id` is not given, or an option is wrong.

    Reference: https://github.com/huggingface/tokenizers.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        context_length: int = 77,
        pad_id: int | None = None,
        cleaning: Sequence[str] = (),
    ):
        data = read_tokenizer_file(model, "tokenizer.json")
        with _library(f"{model} is not a tokenizer.json"):
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            growth = _growth(backend)
        if growth > _MAX_GROWTH:
            raise ValueError(
                f"{model} makes a caption up to {growth:.0e} times longer by its replacements; "
                f"allowed are {_MAX_GROWTH}"
            )
        pad_id = _pad_id(backend, str(model)) if pad_id is None else pad_id
        super().__init__(backend, context_length=context_length, pad_id=pad_id, cleaning=cleaning)
        self._sha256 = sha256(data)

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        return {
            "name": "tokenizer_json",
            "sha256": self._sha256,
            "vocab_size": self.backend.get_vocab_size(with_added_tokens=True),
            "context_length": self.context_length,
            "special_ids": list(self.special_ids),
            "end_kept_when_cut": True,
            "pad_id": self.pad_id,
            "cleaning": list(self._clean.steps),
        }


def read_tokenizer_file(path: str | None, kind: str) -> bytes:
    """Reads a tokenizer's file.

    Raises:
        ValueError: if no path is given, there is no such file, or it is too large to be one.
    """
    if path is None:
        raise FieldError(
            f"model is missing: the tokenizer's {kind} is not shipped with clipjax; give the path "
            "of your copy of it"
        )
    try:
        with epath.Path(os.path.expanduser(path)).open(
            "rb"
        ) as file:  # some say another size than they have
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FieldError(f"model: there is no {kind} at {path}; give the path of one") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more bytes than a {kind}, which has at most {MAX_BYTES}")
    return data


def _growth(backend: tokenizers.Tokenizer) -> float:
    """How many times longer normalization can make a text, at most, by what it puts in."""
    if backend.normalizer is None:
        return 1.0
    growth, to_visit = 1.0, [json.loads(backend.normalizer.__getstate__())]
    while to_visit:
        node: Any = to_visit.pop()
        if isinstance(node, list):
            to_visit += node
        elif isinstance(node, dict):
            to_visit += [value for value in node.values() if isinstance(value, dict | list)]
            if node.get("type") in ("Replace", "Prepend"):
                put_in = str(node.get("content", node.get("prepend", "")))
                # What stands for one character, or before all of them.
                growth = min(growth * max(1, len(put_in.encode("utf-8", "replace"))), math.inf)
    return growth


def _pad_id(backend: tokenizers.Tokenizer, where: str) -> int:
    if backend.padding is not None:
        return backend.padding["pad_id"]
    ids = [backend.token_to_id(token) for token in PAD_TOKENS]
    found = [number for number in ids if number is not None]
    if not found:
        raise FieldError(
            f"pad_id is missing: {where} names no padding token and has none of "
            f"{', '.join(PAD_TOKENS)}"
        )
    return found[0]
