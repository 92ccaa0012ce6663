"""The tokenizer's files of a directory: which tokenizer they are, and how to write them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from clipjax.config import to_plain
from clipjax.interop.hugging_face.clip_tokenizer import read_clip_tokenizer, write_clip_tokenizer
from clipjax.interop.hugging_face.comparison import differences
from clipjax.interop.hugging_face.sentencepiece_json import build_tokenizer
from clipjax.interop.section import read_json, write_json
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import Weights
from clipjax.models.zoo import bert_text, chinese_clip, siglip, siglip_naflex
from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers.wordpiece import VOCABULARY as BERT_VOCABULARY

CONFIG = "tokenizer_config.json"
JSON = "tokenizer.json"
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
WORDPIECE = "vocab.txt"
# The class whose files are a `.model` and which strips the punctuation; every other one keeps it.
_SIGLIP = "SiglipTokenizer"
_LOWER = "lower_each_character"
_SIGLIP_CLEANING = [_LOWER, "strip_punctuation", "collapse_whitespace"]
# transformers' Gemma classes ignore do_lower_case; SigLIP 2 was trained on lower case.
_GEMMA_CLEANING = [_LOWER]

_ROWS = {
    "siglip": siglip.ROWS,
    "siglip2": siglip_naflex.ROWS,
    "align": bert_text.ROWS,
    "chinese_clip": chinese_clip.ROWS,
}
_BERT = ("align", "chinese_clip")

Files = Mapping[str, Path]


def read_tokenizer(
    path: Path, kind: str, vocab_size: int | None = None
) -> tuple[dict[str, Any], Files, int | None]:
    """Recognises a directory's tokenizer.

    Args:
        path: the directory.
        kind: the family, a key of FAMILIES.
        vocab_size: rows of the token embedding. A directory without a tokenizer's files has the
            tokenizer of the zoo's models with as many, whose file is to be given.

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
        return _of_zoo(path, kind, vocab_size), {}, length
    spec, files = _bert(path, config) if kind in _BERT else _sentencepiece(path, config)
    return spec, files, length


def _of_zoo(path: Path, kind: str, vocab_size: int | None) -> dict[str, Any]:
    """The tokenizer of the zoo's models of this family and as many ids."""
    rows = _ROWS[kind].values()
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
        contract = _contract(spec, tokenizer, files)
    except ValueError as error:
        raise WeightFileError(f"{where}: the tokenizer cannot be used: {error}") from error
    rows, ids = spec["text"]["vocab_size"], contract["vocab_size"]
    # CLIP's end of text is the last id of both, unless the model says which one it is.
    eot_id, is_bpe = spec["text"].get("eot_id"), tokenizer["name"] == "clip_bpe"
    if eot_id is not None and eot_id != contract.get("end_id"):
        raise WeightFileError(
            f"{where}: text_config.eos_token_id is {eot_id}, the tokenizer ends with "
            f"{contract.get('end_id')}"
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


def write_tokenizer(path: Path, kind: str, weights: Weights) -> dict[str, Any]:
    """Writes the files that transformers' tokenizers load.

    Returns:
        The tokenizer's spec as it is read from these files.

    Raises:
        ValueError: the family has no such tokenizer, or the file that it needs is not at hand.
    """
    _write(path, kind, weights)
    spec, files, _ = read_tokenizer(path, kind)
    found = _contract(weights.spec, spec, files)
    wanted = _contract(weights.spec, weights.spec["tokenizer"], weights.tokenizer_files)
    # Files that mean another tokenizer would load without an error and cost accuracy.
    for field, theirs, ours in differences(found, wanted):
        raise ValueError(
            f"transformers has no such model: tokenizer.{field} is {ours!r}, in the files of "
            f"type {kind!r} it is {theirs!r}; write target_format='clipjax'"
        )
    return spec


def _contract(model: Mapping[str, Any], spec: dict[str, Any], files: Files) -> dict[str, Any]:
    spec = dict(spec)
    if spec.get("model") in files:
        spec["model"] = str(files[spec["model"]])
    return make_tokenizer(spec, context_length=model["text"]["context_length"]).contract()


def _write(path: Path, kind: str, weights: Weights) -> None:
    spec, length = weights.spec["tokenizer"], weights.spec["text"]["context_length"]
    name = spec["name"]
    allowed = {"clip": ("clip_bpe",), **dict.fromkeys(_BERT, ("wordpiece", "tokenizer_json"))}
    if name not in allowed.get(kind, ("sentencepiece", "tokenizer_json")):
        raise ValueError(
            f"transformers has no such model: tokenizer.name is {name!r} in a model of type "
            f"{kind!r}; write target_format='clipjax'"
        )
    if name == "clip_bpe":
        write_clip_tokenizer(path, spec, length)
        return
    file = _own_file(weights)
    if name == "wordpiece":
        _write_wordpiece(path, file, spec, length)
    elif name == "tokenizer_json":
        shutil.copyfile(file, path / JSON)
        pads = [token for token, i in _vocabulary(file).items() if i == spec.get("pad_id")]
        tokens = {"pad_token": pads[0]} if pads else {}
        _write_config(path, "PreTrainedTokenizerFast", length, tokens)
    else:
        _write_sentencepiece(path, file, spec, length)


def _own_file(weights: Weights) -> Path:
    """The file of the weights' tokenizer; WordPiece's may be the shipped one."""
    spec = weights.spec["tokenizer"]
    model = spec.get("model")
    if model is None and spec["name"] == "wordpiece":
        return BERT_VOCABULARY
    file = weights.tokenizer_files.get(model, Path(model)) if model is not None else None
    if file is None or not file.is_file():
        raise ValueError(
            f"tokenizer.model is {model!r}, which is no file: {weights.source} came without its "
            "vocabulary, which a Hugging Face directory needs; give it as tokenizer=FILE"
        )
    return file


def _token(config: Mapping[str, Any], name: str, default: str) -> str:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    value = config.get(name, default)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default


def _sentencepiece(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
    named = str(config.get("tokenizer_class", ""))
    found = [name for name in SENTENCEPIECE if (path / name).is_file()]
    if not found:
        return _json(path, {"pad_token": "<pad>", **config}, _GEMMA_CLEANING)
    is_first = named == _SIGLIP or (not named and found[0] == SENTENCEPIECE[0])
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
    vocabulary = _vocabulary(path / JSON)
    pad = _token(config, "pad_token", "[PAD]")
    if pad not in vocabulary:
        raise WeightFileError(f"{path / CONFIG}.pad_token is {pad!r}: {JSON} has no such token")
    spec = {"name": "tokenizer_json", "model": JSON, "pad_id": vocabulary[pad]}
    return {**spec, "cleaning": cleaning}, {JSON: path / JSON}


def _vocabulary(path: Path) -> dict[str, int]:
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


def _write_config(path: Path, class_name: str, length: int, tokens: dict[str, Any]) -> None:
    special = {name: token for name, token in tokens.items() if name.endswith("_token")}
    write_json(path / "special_tokens_map.json", special)
    config = {**tokens, "tokenizer_class": class_name, "model_max_length": length}
    config |= {"padding_side": "right", "model_input_names": ["input_ids"]}
    write_json(path / CONFIG, {**config, "clean_up_tokenization_spaces": False})


def _write_sentencepiece(path: Path, file: Path, spec: dict[str, Any], length: int) -> None:
    model = file.read_bytes()
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    contract = make_tokenizer({**spec, "model": str(file)}, context_length=length).contract()
    if contract["start_id"] is not None or contract["end_id"] is None:
        raise ValueError(
            f"transformers has no such model: tokenizer.start_id is {contract['start_id']!r} and "
            f"end_id {contract['end_id']!r}; SigLIP's have an end and no start"
        )
    names = {"eos_token": contract["end_id"], "pad_token": contract["pad_id"]}
    tokens = {name: processor.id_to_piece(i) for name, i in names.items()}
    tokens["unk_token"] = processor.id_to_piece(processor.unk_id())
    if "strip_punctuation" in contract["cleaning"]:
        shutil.copyfile(file, path / SENTENCEPIECE[0])
        tokens["do_lower_case"] = _LOWER in contract["cleaning"]
        _write_config(path, _SIGLIP, length, tokens)
        return
    backend = build_tokenizer(model, contract["end_id"])
    shutil.copyfile(file, path / SENTENCEPIECE[1])
    (path / JSON).write_text(backend.to_str(), encoding="utf-8")
    _write_config(path, "PreTrainedTokenizerFast", length, tokens)


def _write_wordpiece(path: Path, file: Path, spec: dict[str, Any], length: int) -> None:
    if spec.get("end_token", "kept") != "kept" or spec.get("cleaning"):
        raise ValueError(
            "transformers has no such model: tokenizer.end_token and cleaning are "
            f"{spec.get('end_token')!r} and {spec.get('cleaning')!r}, BertTokenizer keeps [SEP] "
            "and cleans nothing; write target_format='clipjax'"
        )
    shutil.copyfile(file, path / WORDPIECE)
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in names}
    tokens["do_lower_case"] = spec.get("lower_case", True)
    _write_config(path, "BertTokenizer", length, tokens)
