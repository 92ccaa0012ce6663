"""The tokenizer's files of a directory: which tokenizer they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from clipjax.config import to_plain
from clipjax.interop.hugging_face.clip_tokenizer import read_clip_tokenizer
from clipjax.interop.section import read_json
from clipjax.interop.tensors import WeightFileError
from clipjax.models.zoo import bert_text, chinese_clip, metaclip2, siglip, siglip_naflex
from clipjax.tokenizers import end_id_of, make_tokenizer
from clipjax.tokenizers.tokenizer_json import PAD_TOKENS
from clipjax.tokenizers.wordpiece import VOCABULARY as BERT_VOCABULARY

CONFIG = "tokenizer_config.json"
JSON = "tokenizer.json"
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
WORDPIECE = "vocab.txt"
# The class whose files are a `.model` and which strips the punctuation; every other one keeps it.
SIGLIP = "SiglipTokenizer"
LOWER = "lower_each_character"
_SIGLIP_CLEANING = [LOWER, "strip_punctuation", "collapse_whitespace"]
# transformers' Gemma classes ignore do_lower_case; SigLIP 2 was trained on lower case.
_GEMMA_CLEANING = [LOWER]

_ROWS = {
    "siglip": siglip.ROWS,
    "siglip2": siglip_naflex.ROWS,
    "align": bert_text.ROWS,
    "chinese_clip": chinese_clip.ROWS,
    "metaclip_2": metaclip2.ROWS,
}
BERT_FAMILIES = ("align", "chinese_clip", "vision-text-dual-encoder")

Files = Mapping[str, Path]


def read_tokenizer(
    path: Path, kind: str, text: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Files, int | None]:
    """Recognises a directory's tokenizer.

    Args:
        path: the directory.
        kind: the family, a key of FAMILIES.
        text: the text tower. A directory without a tokenizer's files has the tokenizer of the
            zoo's models with as many ids, or that of the tower's kind; its file is to be given.

    Returns:
        `tokenizer` of the spec; the files that it needs, by their name in the spec; and the tokens
        of a row, where a file says it.

    Raises:
        WeightFileError: the files are missing and the tokenizer is unknown, or they are of one that
            is not supported.
    """
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    length = config.get("model_max_length")
    # transformers writes 10^30 for "no limit".
    length = length if isinstance(length, int) and 0 < length < 1 << 20 else None
    if kind == "clip":
        return read_clip_tokenizer(path), {}, length
    if not any((path / name).is_file() for name in (*SENTENCEPIECE, JSON, WORDPIECE)):
        return _of_tower(path, kind, text or {}), {}, length
    if kind == "metaclip_2":
        return *_json(path, config, []), length
    spec, files = _bert(path, config) if kind in BERT_FAMILIES else _sentencepiece(path, config)
    return spec, files, length


def _of_tower(path: Path, kind: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer of the zoo's models of this family and as many ids, or of a kind of tower."""
    if kind not in _ROWS:  # of a dual encoder, which has BERT's or RoBERTa's
        is_bert = not text.get("position_offset")
        json = {"name": "tokenizer_json", "pad_id": text.get("pad_id")}
        return {"name": "wordpiece", "shipped": False} if is_bert else json
    rows, vocab_size = _ROWS[kind].values(), text.get("vocab_size")
    found = [to_plain(row["tokenizer"]) for row in rows if row["text"]["vocab_size"] == vocab_size]
    if not found or any(spec != found[0] for spec in found):
        raise WeightFileError(
            f"{path} has no tokenizer: expected one of {', '.join(SENTENCEPIECE)}, {JSON}, or "
            f"{WORDPIECE} for BERT's towers; no one tokenizer of the zoo has {vocab_size} ids"
        )
    return found[0]


def check_tokenizer(spec: Mapping[str, Any], files: Mapping[str, Path], where: str) -> None:
    """Builds the tokenizer and compares its ids with the rows of the token embedding.

    Raises:
        WeightFileError: the tokenizer has ids that the model has no row for, CLIP's has less, or
            the model masks another padding.
    """
    tokenizer = spec["tokenizer"]
    try:
        contract = contract_of(spec, tokenizer, files)
    except ValueError as error:
        raise WeightFileError(f"{where}: the tokenizer cannot be used: {error}") from error
    rows, ids = spec["text"]["vocab_size"], contract["vocab_size"]
    # CLIP's end of text is the last id of both, unless the model says which one it is.
    eot_id, is_bpe = spec["text"].get("eot_id"), tokenizer["name"] == "clip_bpe"
    if eot_id is not None and eot_id != end_id_of(contract):
        raise WeightFileError(
            f"{where}: text_config.eos_token_id is {eot_id}, the tokenizer ends with "
            f"{end_id_of(contract)}"
        )
    if ids > rows or (is_bpe and eot_id is None and ids != rows):
        raise WeightFileError(
            f"{where}: text_config.vocab_size is {rows}, the tokenizer has {ids} ids"
        )
    pad_id = spec["text"].get("pad_id", contract["pad_id"])
    if pad_id != contract["pad_id"]:
        raise WeightFileError(
            f"{where}: text_config.pad_token_id is {pad_id}, the tokenizer pads with "
            f"{contract['pad_id']}"
        )


def contract_of(model: Mapping[str, Any], spec: dict[str, Any], files: Files) -> dict[str, Any]:
    """What a checkpoint would record of a tokenizer of a model."""
    spec = dict(spec)
    if spec.get("model") in files:
        spec["model"] = str(files[spec["model"]])
    return make_tokenizer(spec, context_length=model["text"]["context_length"]).contract()


def _token(config: Mapping[str, Any], name: str, default: str) -> str:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    value = config.get(name, default)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default


def _sentencepiece(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
    named = str(config.get("tokenizer_class", ""))
    found = [name for name in SENTENCEPIECE if (path / name).is_file()]
    if not found:
        return _json(path, config, _GEMMA_CLEANING)
    is_first = named == SIGLIP or (not named and found[0] == SENTENCEPIECE[0])
    end, pad = ("</s>", "</s>") if is_first else ("<eos>", "<pad>")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto((path / found[0]).read_bytes())
    except RuntimeError as error:
        raise WeightFileError(f"{path / found[0]} is no SentencePiece model: {error}") from error
    ids = {}
    for field, default in (("eos_token", end), ("pad_token", pad)):
        token = _token(config, field, default)
        ids[field] = processor.piece_to_id(token)
        if ids[field] == processor.unk_id() and token != processor.id_to_piece(ids[field]):
            raise WeightFileError(f"{path / CONFIG}.{field} is {token!r}: {found[0]} has no such")
    cleaning = _SIGLIP_CLEANING if is_first else _GEMMA_CLEANING
    if is_first and config.get("do_lower_case", True) is False:
        cleaning = cleaning[1:]
    spec = {
        "name": "sentencepiece",
        "model": found[0],
        "cleaning": cleaning,
        "end_id": ids["eos_token"],
        "pad_id": ids["pad_token"],
    }
    return spec, {found[0]: path / found[0]}


def _json(
    path: Path, config: Mapping[str, Any], cleaning: list[str]
) -> tuple[dict[str, Any], Files]:
    if not (path / JSON).is_file():
        raise WeightFileError(f"{path} has no {JSON}, which its tokenizer is read from")
    vocabulary = vocabulary_of(path / JSON)
    usual = next((token for token in PAD_TOKENS if token in vocabulary), PAD_TOKENS[0])
    pad = _token(config, "pad_token", usual)
    if pad not in vocabulary:
        raise WeightFileError(f"{path / CONFIG}.pad_token is {pad!r}: {JSON} has no such token")
    spec = {"name": "tokenizer_json", "model": JSON, "pad_id": vocabulary[pad]}
    return {**spec, "cleaning": cleaning}, {JSON: path / JSON}


def vocabulary_of(path: Path) -> dict[str, int]:
    """Added tokens and pieces of a tokenizer.json; pieces are a table, or a list with scores."""
    content = read_json(path)
    model = content.get("model")
    pieces: Any = model.get("vocab") if isinstance(model, dict) else None
    added = content.get("added_tokens") or []
    try:
        if isinstance(pieces, list):
            pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
        return {**pieces, **{token["content"]: token["id"] for token in added}}
    except (TypeError, KeyError, ValueError) as error:
        raise WeightFileError(f"{path} is no tokenizer.json: {error!r}") from error


def _bert(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
    if not (path / WORDPIECE).is_file():
        return _json(path, config, [])
    spec: dict[str, Any] = {"name": "wordpiece"}
    if config.get("do_lower_case", True) is False:
        spec["lower_case"] = False
    if (path / WORDPIECE).read_bytes() == BERT_VOCABULARY.read_bytes():
        return spec, {}
    return {**spec, "model": WORDPIECE}, {WORDPIECE: path / WORDPIECE}
