"""The tokenizer's files of a directory, written."""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece

from clipjax.interop.hugging_face.clip_tokenizer import write_clip_tokenizer
from clipjax.interop.hugging_face.comparison import differences
from clipjax.interop.hugging_face.sentencepiece_json import build_tokenizer
from clipjax.interop.hugging_face.tokenizer_files import (
    BERT_FAMILIES,
    CONFIG,
    JSON,
    LOWER,
    SENTENCEPIECE,
    SIGLIP,
    WORDPIECE,
    contract_of,
    read_tokenizer,
    vocabulary_of,
)
from clipjax.interop.section import write_json
from clipjax.interop.weights import Weights
from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers.wordpiece import VOCABULARY as BERT_VOCABULARY


def write_tokenizer(path: Path, kind: str, weights: Weights) -> dict[str, Any]:
    """Writes the files that transformers' tokenizers load.

    Returns:
        The tokenizer's spec as it is read from these files.

    Raises:
        ValueError: the family has no such tokenizer, or the file that it needs is not at hand.
    """
    _write(path, kind, weights)
    spec, files, _ = read_tokenizer(path, kind)
    found = contract_of(weights.spec, spec, files)
    wanted = contract_of(weights.spec, weights.spec["tokenizer"], weights.tokenizer_files)
    # Files that mean another tokenizer would load without an error and cost accuracy.
    for field, theirs, ours in differences(found, wanted):
        raise ValueError(
            f"transformers has no such model: tokenizer.{field} is {ours!r}, in the files of "
            f"type {kind!r} it is {theirs!r}; write target_format='clipjax'"
        )
    return spec


def _write(path: Path, kind: str, weights: Weights) -> None:
    spec, length = weights.spec["tokenizer"], weights.spec["text"]["context_length"]
    name = spec["name"]
    allowed = {
        "clip": ("clip_bpe",),
        "metaclip_2": ("tokenizer_json",),
        **dict.fromkeys(BERT_FAMILIES, ("wordpiece", "tokenizer_json")),
    }
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
        pads = [token for token, i in vocabulary_of(file).items() if i == spec.get("pad_id")]
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
        tokens["do_lower_case"] = LOWER in contract["cleaning"]
        _write_config(path, SIGLIP, length, tokens)
        return
    backend = build_tokenizer(model, contract["end_id"])
    shutil.copyfile(file, path / SENTENCEPIECE[1])
    (path / JSON).write_text(backend.to_str(), encoding="utf-8")
    _write_config(path, "PreTrainedTokenizerFast", length, tokens)


def _write_wordpiece(path: Path, file: Path, spec: dict[str, Any], length: int) -> None:
    whole = spec.get("start_token", True) and spec.get("end_token", "kept") == "kept"
    if not whole or spec.get("cleaning"):
        said = {name: spec.get(name) for name in ("start_token", "end_token", "cleaning")}
        raise ValueError(
            f"transformers has no such model: of the tokenizer {said} is said, BertTokenizer has "
            "[CLS] and [SEP] and cleans nothing; write target_format='clipjax'"
        )
    shutil.copyfile(file, path / WORDPIECE)
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in names}
    tokens["do_lower_case"] = spec.get("lower_case", True)
    _write_config(path, "BertTokenizer", length, tokens)
