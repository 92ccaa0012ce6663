"""Any SentencePiece `.model` file as a tokenizer."""

import functools
import hashlib
import string
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from etils import epath

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SentencePiece:
    """Encodes with a published or own `.model` file.

    A row is `[words..., end, pad, ...]`. The defaults are SigLIP's: lower case, an end token
    that stays when a caption is cut.

    Args:
        model: path of the `.model` file (local or a bucket).
        context_length: tokens in a row.
        lower_case: whether captions are lower-cased first.
        strip_punctuation: whether ASCII punctuation is removed and white space collapsed first.
        start_id: id put before the words, or None.
        end_id: id put after the words; by default the model's own, or none if it has none.
        pad_id: id that fills a row; by default the model's own, else its end id, else 0.

    Raises:
        ValueError: if there is no such file, it is no SentencePiece model, or an id is outside it.

    Reference: arXiv:1808.06226; rules of arXiv:2303.15343 and arXiv:2502.14786.
    """

    def __init__(
        self,
        *,
        model: str,
        context_length: int = 64,
        lower_case: bool = True,
        strip_punctuation: bool = False,
        start_id: int | None = None,
        end_id: int | None = None,
        pad_id: int | None = None,
    ):
        proto = _read_model(str(model))
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(proto)
        except RuntimeError as error:
            raise ValueError(f"{model} is not a SentencePiece model: {error}") from error
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}: at least 2 tokens are needed")
        self.context_length = context_length
        self.lower_case, self.strip_punctuation = lower_case, strip_punctuation
        self.start_id = start_id
        self.end_id = _first_id(end_id, self._processor.eos_id())
        self.pad_id = _first_id(pad_id, self._processor.pad_id(), self.end_id, 0)
        for name in ("start_id", "end_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} is {value}: {model} has the ids 0..{self.vocab_size - 1}")
        self._sha256 = hashlib.sha256(proto).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._processor.get_piece_size()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""
        if isinstance(texts, str):
            raise ValueError("texts is one string: pass a list of captions")
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        start = [] if self.start_id is None else [self.start_id]
        end = [] if self.end_id is None else [self.end_id]
        room = self.context_length - len(start) - len(end)
        for row, ids in zip(tokens, self._processor.encode(self._clean(texts)), strict=True):
            ids = [*start, *ids[:room], *end]
            row[: len(ids)] = ids
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Turns a row of ids into text, up to the end token."""
        words = []
        for number in map(int, ids):
            if number == self.end_id:
                break
            if number not in (self.start_id, self.pad_id):
                words.append(number)
        return self._processor.decode(words)

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        return {
            "name": "sentencepiece",
            "sha256": self._sha256,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "start_id": self.start_id,
            "end_id": self.end_id,
            "end_kept_when_cut": True,
            "pad_id": self.pad_id,
            "lower_case": self.lower_case,
            "strip_punctuation": self.strip_punctuation,
        }

    def _clean(self, texts: Sequence[str]) -> list[str]:
        texts = list(texts)
        if self.lower_case:
            texts = [text.lower() for text in texts]
        if self.strip_punctuation:
            texts = [" ".join(text.translate(_NO_PUNCTUATION).split()) for text in texts]
        return texts


@functools.lru_cache(maxsize=4)
def _read_model(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no SentencePiece model at {path}: give tokenizer.model the path of a "
            "`.model` file"
        ) from error


def _first_id(*candidates: int | None) -> int | None:
    return next((c for c in candidates if c is not None and c >= 0), None)
