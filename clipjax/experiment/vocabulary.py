"""The token embeddings of a model whose tokenizer is replaced: carried over by token."""

import dataclasses
from typing import Any

import numpy as np

from clipjax.ranges import named
from clipjax.tokenizers import Tokenizer
from clipjax.tokenizers.pieces import WORD, pieces_of


@dataclasses.dataclass(frozen=True)
class Carried:
    """A table of embeddings, and where its rows are from.

    Attributes:
        table: float32 `[vocab, width]`.
        shared: rows of tokens that both vocabularies have.
        composed: rows that are the mean of those that the old tokenizer cuts the token into.
        drawn: rows that are drawn, without a token or one that the old tokenizer knows nothing of.
    """

    table: np.ndarray
    shared: int
    composed: int
    drawn: int

    def __str__(self) -> str:
        return (
            f"token embeddings: {self.shared:,} of {len(self.table):,} rows are of tokens that both"
            f" vocabularies have, {self.composed:,} are means of what the old tokenizer cuts the "
            f"token into, {self.drawn:,} are drawn"
        )


def carry_over(
    old_table: np.ndarray, old: Tokenizer, new: Tokenizer, rows: int, seed: int = 0
) -> Carried:
    """Makes the embeddings of a new vocabulary from those of an old one.

    A token of both keeps its row; of another one the row is the mean of the rows of those tokens
    that the old tokenizer cuts it into (arXiv:2402.09977). What is left is drawn from a normal
    distribution with the mean and the deviation of the old table's columns.

    Args:
        old_table: float32 `[old vocab, width]`.
        old: the tokenizer that its rows are of.
        new: the tokenizer that the model gets.
        rows: of the new table, at least `new.vocab_size`.
        seed: of the draws.

    Raises:
        ValueError: one of the tokenizers does not say its pieces.
    """
    with named("the checkpoint's tokenizer"):
        known = pieces_of(old)
    with named("config.model.tokenizer"):
        wanted = pieces_of(new)
    random = np.random.default_rng(seed)
    mean, deviation = old_table.mean(axis=0), old_table.std(axis=0)
    shape = (rows, old_table.shape[1])
    table = (mean + deviation * random.standard_normal(shape)).astype(np.float32)
    around = _around(old)
    shared = composed = 0
    for piece, number in wanted.items():
        if piece in known:
            table[number] = old_table[known[piece]]
            shared += 1
        elif (ids := _cut(old, piece, around)).size:
            table[number] = old_table[ids].mean(axis=0)
            composed += 1
    return Carried(table, shared, composed, rows - shared - composed)


def _around(old: Tokenizer) -> set[int]:
    """The ids of a caption that is empty: what stands around the words."""
    return {*np.asarray(old([""])[0]).tolist(), old.pad_id}


def _cut(old: Tokenizer, piece: str, around: set[int]) -> np.ndarray:
    """The ids of a piece's text, without those that stand around any text."""
    text = piece.removeprefix(WORD)
    if not text.strip() or text.startswith("<"):
        return np.zeros(0, np.int64)
    ids: Any = old([text])[0]
    return np.array([i for i in ids.tolist() if i not in around], np.int64)
