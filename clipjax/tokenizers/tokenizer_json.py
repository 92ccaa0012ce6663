"""Hugging Face's `tokenizer.json` files, of any kind, and what they share with WordPiece."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath

from clipjax.tokenizers.cleaning import Cleaner

# How the padding token is spelled, where a file does not say which one it is.
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>")


class BackedTokenizer:
    """Rows of ids from a `tokenizers.Tokenizer`: cleaned, cut, with its special tokens, padded.

    Args:
        backend: normalizes, splits, encodes and adds the special tokens.
        context_length: tokens in a row.
        pad_id: id that fills a row.
        cleaning: steps of `clipjax.tokenizers.cleaning` before that.

    Raises:
        ValueError: if the context has no room, `pad_id` is no id, or a step is unknown.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        context_length: int,
        pad_id: int,
        cleaning: Sequence[str] = (),
    ):
        specials = backend.num_special_tokens_to_add(False)
        if context_length <= specials:
            raise ValueError(
                f"context_length is {context_length}: at least {specials + 1} tokens are needed"
            )
        self._backend = backend
        if not 0 <= pad_id < self.vocab_size:
            raise ValueError(f"pad_id is {pad_id}: the ids are 0..{self.vocab_size - 1}")
        self.context_length, self.pad_id = context_length, pad_id
        # Whatever a file says of these two was meant for another context.
        backend.enable_truncation(max_length=context_length)
        backend.no_padding()
        self.special_ids = backend.encode("").ids
        self._clean = Cleaner(cleaning)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""
        texts = self._clean(texts)
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        # Not encode_batch: its threads would compete with the loader's, and die in a fork.
        for row, text in zip(tokens, texts, strict=True):
            ids = self._backend.encode(text).ids
            row[: len(ids)] = ids
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Turns a row of ids into text, without special tokens."""
        return self._backend.decode([int(number) for number in ids], skip_special_tokens=True)


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
        try:
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:
            # The library raises plain Exception for whatever it cannot read.
            raise ValueError(f"{model} is not a tokenizer.json: {error}") from error
        pad_id = _pad_id(backend, str(model)) if pad_id is None else pad_id
        super().__init__(backend, context_length=context_length, pad_id=pad_id, cleaning=cleaning)
        self._sha256 = hashlib.sha256(data).hexdigest()

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        return {
            "name": "tokenizer_json",
            "sha256": self._sha256,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "special_ids": list(self.special_ids),
            "end_kept_when_cut": True,
            "pad_id": self.pad_id,
            "cleaning": list(self._clean.steps),
        }


def read_tokenizer_file(path: str | None, kind: str) -> bytes:
    """Reads a tokenizer's file.

    Args:
        path: `tokenizer.model` of the spec.
        kind: what the file is, for the message.

    Raises:
        ValueError: if no path is given or there is no such file.
    """
    if path is None:
        raise ValueError(
            f"the tokenizer's {kind} is not shipped with clipjax: set config.model.tokenizer.model "
            "to the path of your copy of it"
        )
    try:
        return epath.Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(
            f"there is no {kind} at {path}: set config.model.tokenizer.model to the path of one"
        ) from error


def _pad_id(backend: tokenizers.Tokenizer, where: str) -> int:
    if backend.padding is not None:
        return backend.padding["pad_id"]
    ids = [backend.token_to_id(token) for token in PAD_TOKENS]
    found = [number for number in ids if number is not None]
    if not found:
        raise ValueError(
            f"{where} names no padding token and has none of {', '.join(PAD_TOKENS)}: set "
            "config.model.tokenizer.pad_id"
        )
    return found[0]
