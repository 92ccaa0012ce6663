"""Tokenizers of OpenCLIP's folders: which one of ours they are, and their files written."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from absl import logging

from clipjax.interop.hugging_face.tokenizer_writing import write_tokenizer
from clipjax.interop.section import write_json
from clipjax.interop.weights import Weights
from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers.wordpiece import VOCABULARY

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
# What OpenCLIP's `clean` does to a caption before transformers' tokenizer sees it.
CLEANING = {
    "canonicalize": (
        *("fix_text", "underscores_to_spaces", "strip_punctuation"),
        *("lower", "collapse_whitespace"),
    ),
    "lower": ("fix_text", "collapse_whitespace", "lower"),
    "whitespace": ("fix_text", "collapse_whitespace"),
}
# Repositories of the vocabularies, by size; a folder's own files come before them.
_REPOSITORIES = {
    32_000: "timm/ViT-B-16-SigLIP",
    250_000: "timm/ViT-B-16-SigLIP-i18n-256",
    256_000: "timm/ViT-B-16-SigLIP2",
    901_629: "facebook/xlm-v-base",
}


def tokenizer_of_folder(
    row: Mapping[str, Any], text: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Gives the tokenizer of a folder.

    Args:
        row: `tokenizer` of the zoo's row.
        text: `text_cfg` of the folder's config.
        folder: with tokenizer.json or a SentencePiece model, or without.

    Returns:
        `tokenizer` of the spec, and the files that it needs. Without files it is the row's.

    Raises:
        ValueError: an unknown rule of cleaning.
    """
    tokenizer = dict(row)
    if not text.get("hf_tokenizer_name") or tokenizer["name"] == "wordpiece":
        return tokenizer, {}
    kwargs = text.get("tokenizer_kwargs") or {}
    clean = kwargs.get("clean", "whitespace") if isinstance(kwargs, dict) else kwargs
    if not isinstance(clean, str) or clean not in CLEANING:
        raise ValueError(
            f"text_cfg.tokenizer_kwargs.clean = {clean!r} is unknown; {', '.join(CLEANING)} are"
        )
    cleaning = list(CLEANING[clean])
    if (folder / JSON).is_file():
        pad = {"pad_id": tokenizer["pad_id"]} if "pad_id" in tokenizer else {}
        spec = {"name": "tokenizer_json", "model": JSON, "cleaning": cleaning, **pad}
        return spec, {JSON: folder / JSON}
    for name in SENTENCEPIECE:
        if tokenizer["name"] == "sentencepiece" and (folder / name).is_file():
            return {**tokenizer, "model": name, "cleaning": cleaning}, {name: folder / name}
    return tokenizer, {}


def text_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Gives `hf_tokenizer_name` and `tokenizer_kwargs` of `text_cfg`; {} for CLIP's BPE."""
    tokenizer, vocab_size = spec["tokenizer"], spec["text"]["vocab_size"]
    if tokenizer["name"] == "clip_bpe":
        return {}
    if tokenizer["name"] == "wordpiece":
        kwargs: dict[str, Any] = {"strip_sep_token": True}
        return {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": kwargs}
    fields = {"hf_tokenizer_name": _REPOSITORIES.get(vocab_size, tokenizer["name"])}
    return {**fields, "tokenizer_kwargs": {"clean": _clean(tokenizer.get("cleaning", ()))}}


def _clean(cleaning: tuple[str, ...]) -> str:
    """The rule of OpenCLIP's that does these steps, or comes nearest."""
    if "strip_punctuation" in cleaning:
        return "canonicalize"
    return "lower" if {"lower", "lower_each_character"} & set(cleaning) else "whitespace"


def write_files(path: Path, weights: Weights) -> None:
    """Writes the files that `open_clip.get_tokenizer(f"local-dir:{path}")` loads."""
    tokenizer, length = weights.spec["tokenizer"], weights.spec["text"]["context_length"]
    file = weights.tokenizer_files.get(tokenizer.get("model", ""))
    if tokenizer["name"] == "wordpiece":
        shutil.copyfile(file or VOCABULARY, path / "vocab.txt")
        tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
        _write_config(path, "BertTokenizer", length, {**tokens, "do_lower_case": True})
    elif file is None:
        if tokenizer["name"] != "clip_bpe":
            logging.warning("%s takes no texts: its tokenizer's file is not at hand", path)
    elif tokenizer["name"] == "tokenizer_json":
        shutil.copyfile(file, path / JSON)
        _write_config(path, "PreTrainedTokenizerFast", length, _pad_token(file, tokenizer, length))
    elif tokenizer["name"] == "sentencepiece":
        _write_sentencepiece(path, file, weights)


def _write_sentencepiece(path: Path, file: Path, weights: Weights) -> None:
    with tempfile.TemporaryDirectory(dir=path) as folder:
        try:
            write_tokenizer(Path(folder), "siglip", weights)
        except ValueError as error:
            # OpenCLIP finds no tokenizer then, which is better than another one.
            logging.warning("%s takes no texts in OpenCLIP: %s", path, error)
            shutil.copyfile(file, path / SENTENCEPIECE[1])
            return
        for written in Path(folder).iterdir():
            written.rename(path / written.name)


def _pad_token(file: Path, tokenizer: Mapping[str, Any], length: int) -> dict[str, Any]:
    pad_id = make_tokenizer({**tokenizer, "model": str(file)}, context_length=length).pad_id
    return {"pad_token": tokenizers.Tokenizer.from_file(str(file)).id_to_token(pad_id)}


def _write_config(path: Path, name: str, length: int, fields: Mapping[str, Any]) -> None:
    content = {"tokenizer_class": name, "model_max_length": length, **fields}
    write_json(path / CONFIG, content)
