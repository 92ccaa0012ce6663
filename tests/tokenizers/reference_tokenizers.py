"""The reference tokenizers, run as published: open_clip's and transformers'. Needs [interop]."""

import functools
import gzip
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import normalizers
from transformers import (
    BertTokenizer,
    BertTokenizerFast,
    CLIPTokenizer,
    GemmaTokenizerFast,
    PreTrainedTokenizerFast,
    SiglipTokenizer,
)

sys.path.append(str(Path(__file__).parents[1] / "golden" / "models"))
import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

os.environ["TOKENIZERS_PARALLELISM"] = "false"
GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
SHIPPED = Path(__file__).parents[2] / "clipjax" / "tokenizers" / "vocabularies"
BERT = str(SHIPPED / "bert_base_uncased.txt")


def versions() -> dict[str, str]:
    names = ("open_clip_torch", "transformers", "tokenizers", "sentencepiece", "ftfy")
    return {name: importlib.metadata.version(name) for name in names}


@functools.cache
def unpacked(name: str) -> str:
    """A golden vocabulary as a file."""
    folder = tempfile.mkdtemp()
    path = Path(folder) / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((GOLDEN / name).read_bytes()))
    return str(path)


def _rows(tokenizer, texts, length):
    encoded = tokenizer(
        texts, max_length=length, padding="max_length", truncation=True, return_tensors="np"
    )
    return encoded.input_ids


def _open_clip(tokenizer, texts, length, **options):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return HFTokenizer(folder, context_length=length, **options)(texts).numpy()


def clip_bpe(texts):
    return SimpleTokenizer()(texts, context_length=77).numpy()


def align(texts):
    return _rows(BertTokenizerFast(vocab_file=BERT), texts, 64)


def align_python(texts):
    return _rows(BertTokenizer(vocab_file=BERT), texts, 64)


def clipa(texts):
    return _open_clip(BertTokenizerFast(vocab_file=BERT), texts, 32, strip_sep_token=True)


def siglip(texts, model: str | None = None):
    model = model or unpacked("c4.model.gz")
    return _rows(SiglipTokenizer(model, model_max_length=64), texts, 64)


def siglip2(texts):
    tokenizer = GemmaTokenizerFast(
        unpacked("gemma.model.gz"), padding_side="right", add_bos_token=False, add_eos_token=True
    )
    # transformers' Gemma keeps the case; SigLIP 2's file puts this in front.
    lower = normalizers.Lowercase()
    return _rows(tokenizer, [lower.normalize_str(text) for text in texts], 64)


def xlm_roberta(texts):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=unpacked("xlm_roberta.json.gz"), pad_token="<pad>", eos_token="</s>"
    )
    return _open_clip(tokenizer, texts, 77)


def hugging_face_clip(texts, symbols, merges):
    """transformers' own CLIP tokenizer: ftfy, no second unescaping, rows padded with the end."""
    with tempfile.TemporaryDirectory() as folder:
        ids = {symbol: number for number, symbol in enumerate(symbols)}
        (Path(folder) / "vocab.json").write_text(json.dumps(ids))
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines))
        tokenizer = CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
    return _rows(tokenizer, texts, 77)


CASES = {
    function.__name__: function
    for function in (clip_bpe, align, clipa, siglip, siglip2, xlm_roberta)
}


def encode(name: str, texts: list[str]) -> np.ndarray:
    return CASES[name](texts)
