"""`clipjax tokenizer train` makes a vocabulary; `clipjax tokenizer encode` shows what one does.

clipjax tokenizer train --input SPEC[ SPEC...] --vocab_size N --out FILE
clipjax tokenizer encode --tokenizer FILE TEXT...

SPEC is kind:where[:split][?option=value], as in config.data.source. A config uses the vocabulary as
config.model.tokenizer = {"name": "sentencepiece", "model": FILE}.
"""

from collections import Counter
from typing import Any

from absl import flags
from tqdm import tqdm

from clipjax.cli.main import given
from clipjax.cli.output import show

_INPUT = flags.DEFINE_string("input", None, "train: datasets, separated by spaces.")
_OUT = flags.DEFINE_string("out", None, "train: the .model file to write.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32_000, "train: pieces of the vocabulary.")
_MODEL_TYPE = flags.DEFINE_string("model_type", "unigram", "train: unigram or bpe.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "train: of the sampling of languages; above 1, rare ones count more."
)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "encode: a .model file.")


def main(argv: list[str]) -> int:
    """Runs a command."""
    if len(argv) < 2 or argv[1] not in COMMANDS:
        raise ValueError(
            f"expected `clipjax tokenizer COMMAND`, COMMAND one of {', '.join(COMMANDS)}; found "
            f"{argv[1:]}"
        )
    return COMMANDS[argv[1]](argv[2:])


def train(rest: list[str]) -> int:
    """Trains on the captions of datasets."""
    from clipjax.data.captions import captions_by_language
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import local_path
    from clipjax.tokenizers.training import check_training, train_sentencepiece

    specs, file = given(_INPUT.value, "--input SPEC"), given(_OUT.value, "--out FILE")
    if rest:
        raise ValueError(f"unexpected arguments {rest}; --input takes several SPECs in quotes")
    how: dict[str, Any] = {
        "vocab_size": _VOCAB_SIZE.value,
        "model_type": _MODEL_TYPE.value,
        "temperature": _TEMPERATURE.value,
    }
    out = check_training(local_path(file), **how)  # before captions are read
    captions: dict[str, list[str]] = {}
    unusable: Counter[str] = Counter()
    for spec in specs.split():
        found = captions_by_language(make_source(spec, path="--input"), unusable)
        for language, text in tqdm(found, desc="captions", unit="caption", disable=None):
            captions.setdefault(language, []).append(text)
    for language, texts in sorted(captions.items()):
        show(f"{language}: {len(texts):,} captions")
    for reason, count in sorted(unusable.items()):
        show(f"left out, {reason}: {count:,} examples")
    digest = train_sentencepiece(captions, out, **how)
    show(f"{out}: {_VOCAB_SIZE.value:,} pieces, SHA-256 {digest}")
    return 0


def encode(texts: list[str]) -> int:
    """Prints the ids of texts, and what they say."""
    from clipjax.tokenizers import make_tokenizer

    if not _TOKENIZER.value or not texts:
        raise ValueError("expected `clipjax tokenizer encode --tokenizer FILE TEXT...`")
    tokenizer = make_tokenizer(
        {"name": "sentencepiece", "model": _TOKENIZER.value}, context_length=256
    )
    for text, row in zip(texts, tokenizer(texts), strict=True):
        ids = [int(number) for number in row if number != tokenizer.pad_id]
        show(f"{text!r}: {len(ids)} tokens {ids} -> {tokenizer.decode(row)!r}")
    return 0


COMMANDS = {"encode": encode, "train": train}
