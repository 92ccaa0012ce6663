"""Training a SentencePiece vocabulary on captions of one or many languages."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import sentencepiece

from clipjax.files import sha256, write_file

MODEL_TYPES = ("unigram", "bpe")
# Sums of floating-point numbers depend on the number of threads: a fixed one gives the same file
# on every machine.
_THREADS = 8
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_TOO_LARGE = re.compile(r"set it to a value <= (\d+)")
_MAX_BYTES = 16_384  # of a caption; SentencePiece would leave out longer ones without a word


def train_sentencepiece(
    captions: Mapping[str, Sequence[str]],
    out: str | os.PathLike[str],
    *,
    vocab_size: int,
    model_type: str = "unigram",
    temperature: float = 1.0,
    lower_case: bool = True,
) -> str:
    """Trains a vocabulary and writes it, at once or not at all.

    A language of n captions counts like `n_max (n / n_max)^(1 / temperature)` of them: 1 leaves the
    languages as they are, a high temperature makes them equal (arXiv:1907.05019). Text is brought
    to NFKC; characters that are too rare for a piece of their own are spelled in bytes, so nothing
    is unknown. Id 0 is padding; the largest is the end of text, where `pooling = "eot"` looks.

    Args:
        captions: texts by language; any names will do.
        out: the `.model` file to write.
        vocab_size: pieces in all, the 256 bytes and 3 special ones included.
        model_type: `unigram` (arXiv:1804.10959) or `bpe` (arXiv:1508.07909).
        temperature: of the sampling of languages, at least 1.
        lower_case: as the tokenizer's default `cleaning` does.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: as `check_training`, no captions, or a vocabulary that these captions cannot
            fill.
    """
    out = check_training(out, vocab_size, model_type, temperature)
    if not any(captions.values()):
        raise ValueError("there are no captions to train on")

    def run(end_id: int) -> bytes:
        texts = sample_languages(captions, temperature, lower_case=lower_case)
        return _train(texts, vocab_size, model_type, end_id)

    try:
        data = run(end_id=vocab_size - 1)
    except RuntimeError as error:
        raise ValueError(
            f"no vocabulary of {vocab_size} pieces comes out of these captions: "
            f"{_remedy(error, run)}"
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, data)
    return sha256(data)


def check_training(
    out: str | os.PathLike[str], vocab_size: int, model_type: str, temperature: float
) -> Path:
    """Checks the arguments of a training before captions are read; gives the file to write.

    Raises:
        ValueError: an argument out of range, or the file exists.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type {model_type!r}: allowed are {', '.join(MODEL_TYPES)}")
    if not temperature >= 1:  # nan is not, either
        raise ValueError(f"temperature is {temperature}: at least 1, which leaves all as it is")
    if vocab_size <= 259:
        raise ValueError(
            f"vocab_size is {vocab_size}: at least 260, as 259 pieces are bytes and special ones"
        )
    path = Path(out).expanduser()
    if path.exists():
        raise ValueError(f"{out} exists; a checkpoint may need it: give another name")
    return path


def _train(texts: Iterator[str], vocab_size: int, model_type: str, end_id: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="nfkc",
        character_coverage=0.9995,
        max_sentence_length=_MAX_BYTES,
        pad_id=0,
        eos_id=end_id,
        unk_id=1,
        bos_id=-1,
        num_threads=_THREADS,
        minloglevel=2,
    )
    return model.getvalue()


def _remedy(error: RuntimeError, run: Callable[[int], bytes]) -> str:
    """Says what SentencePiece's error means, which is written for its own developers."""
    if found := _TOO_SMALL.search(str(error)):
        return f"their characters alone need {found[1]}; raise vocab_size to at least that"
    if "pieces_size" not in str(error):
        return str(error).splitlines()[-1]
    try:
        run(2)  # with its usual ids it says how many pieces there are
    except RuntimeError as told:
        if found := _TOO_LARGE.search(str(told)):
            return f"lower vocab_size to at most {found[1]}"
    return "they have too few different words; lower vocab_size"


def sample_languages(
    captions: Mapping[str, Sequence[str]], temperature: float, *, lower_case: bool
) -> Iterator[str]:
    """Gives every caption at least once, those of rare languages again and again."""
    largest = max(map(len, captions.values()))
    for _, texts in sorted(captions.items()):
        wanted = round(largest * (len(texts) / largest) ** (1 / temperature)) if texts else 0
        for number in range(max(wanted, len(texts))):
            text = " ".join(texts[number % len(texts)].split())[: _MAX_BYTES // 4]
            yield text.lower() if lower_case else text
