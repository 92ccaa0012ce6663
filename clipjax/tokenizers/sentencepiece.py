"""Any SentencePiece `.model` file as a tokenizer."""

from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from clipjax.files import sha256
from clipjax.tokenizers.cleaning import Cleaner, contract_of
from clipjax.tokenizers.pieces import by_role
from clipjax.tokenizers.tokenizer_json import read_tokenizer_file


class SentencePiece:
    """Encodes with a published or own `.model` file.

    A row is `[words..., end, pad, ...]`. The defaults are those of the code that trained SigLIP:
    lower case, an end token that stays when a caption is cut. A special token spelled in a caption,
    such as `</s>`, is text.

    Args:
        model: path of the `.model` file (local or a bucket).
        context_length: tokens in a row.
        cleaning: steps of `clipjax.tokenizers.cleaning` before the model's own normalization.
            SigLIP in transformers: `lower_each_character, strip_punctuation, collapse_whitespace`;
            in OpenCLIP: `fix_text, underscores_to_spaces, strip_punctuation, lower,
            collapse_whitespace`.
        start_id: id put before the words, or None (Gemma's is 2; SigLIP 2 puts none).
        end_id: id put after the words; by default the model's own, or none if it has none.
        pad_id: id that fills a row; by default the model's own, else its end id, else 0.

    Raises:
        ValueError: if there is no such file, it is no SentencePiece model, or an id is outside it.

    Reference: arXiv:1808.06226; rules of arXiv:2303.15343 and arXiv:2502.14786.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        context_length: int = 64,
        cleaning: Sequence[str] = ("lower",),
        start_id: int | None = None,
        end_id: int | None = None,
        pad_id: int | None = None,
    ):
        proto = read_tokenizer_file(model, "SentencePiece model")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(proto)
        except RuntimeError as error:
            raise ValueError(f"{model} is not a SentencePiece model: {error}") from error
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}: at least 2 tokens are needed")
        self.context_length = context_length
        self.start_id = start_id
        self._clean = Cleaner(cleaning)
        self.end_id = _first_id(end_id, self._processor.eos_id())
        self.pad_id = _first_id(pad_id, self._processor.pad_id(), self.end_id, 0)
        for name in ("start_id", "end_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} is {value}: {model} has the ids 0..{self.vocab_size - 1}")
        self._sha256 = sha256(proto)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._processor.get_piece_size()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""
        texts = self._clean(texts)
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        start = [] if self.start_id is None else [self.start_id]
        end = [] if self.end_id is None else [self.end_id]
        room = self.context_length - len(start) - len(end)
        for row, ids in zip(tokens, self._processor.encode(texts), strict=True):
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

    def pieces(self) -> dict[str, int]:
        """The ids of the tokens by what they stand for, see `clipjax.tokenizers.pieces`."""
        found = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
        return by_role(found, start=self.start_id, end=self.end_id, pad=self.pad_id)

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        known = contract_of(self, "sentencepiece", self._sha256, "start_id", "end_id")
        return {**known, "end_kept_when_cut": True, "cleaning": list(self._clean.steps)}


def _first_id(*candidates: int | None) -> int | None:
    return next((c for c in candidates if c is not None and c >= 0), None)
