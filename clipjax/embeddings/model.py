"""The model of an index: what is kept of it, and how it is opened again."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from clipjax.checkpoint import MissingTokenizer
from clipjax.config import to_plain
from clipjax.data.storage.files import local_path
from clipjax.embeddings.index import INDEX, Index
from clipjax.files import sha256
from clipjax.inference.loading import HINT_RULES
from clipjax.inference.model import Model
from clipjax.inference.opened import Opened, open_model
from clipjax.interop import hub
from clipjax.interop.weights import NO_HINTS, Hints
from clipjax.redaction import redact

_FILES = ("tokenizer", "lora", "text_from")


def about_model(opened: Opened, checkpoint: str) -> dict[str, Any]:
    """Gives what an index keeps of its model, as plain JSON.

    Args:
        opened: the model.
        checkpoint: where it is now.
    """
    model = opened.model
    return {
        "name": model.spec["name"],
        "sha256": opened.weights_sha256,
        "step": opened.step,
        "embed_dim": model.spec["embed_dim"],
        "dtype": model.dtype,
        "tokenizer_sha256": _tokenizer_sha256(model),
        "checkpoint": redact(checkpoint),
        "hints": _kept_hints(opened.hints),
    }


def open_model_of(
    index: Index, checkpoint: str | None = None, hints: Hints = NO_HINTS, **options: Any
) -> Opened:
    """Opens the model whose embeddings an index holds.

    Args:
        checkpoint: where it is now; by default where it was.
        hints: what its files cannot say; by default what was said when it embedded.
        **options: mesh, batch_size; see `Model`.

    Raises:
        ValueError: it is another model, or there is none.
    """
    told = index.about["model"]
    path = checkpoint or told["checkpoint"]
    _check_there(index, path, "the model", "checkpoint")
    pixels = index.about["preprocess"]["pixels"]
    said = _with_kept(index, hints)
    try:
        opened = open_model(path, said, dtype=told["dtype"], preprocess=pixels, **options)
    except ValueError as error:
        if said == hints:
            raise
        kept = {name: value for name, value in told["hints"].items() if value}
        raise ValueError(f"{error}; {index.directory / INDEX} has kept {kept!r:.200}") from error
    if opened.weights_sha256 != told["sha256"]:
        raise ValueError(
            f"{index.directory} holds embeddings of another model, {told['name']} of step "
            f"{told['step']}, SHA-256 {told['sha256']}; {path} is of step {opened.step}, "
            f"{opened.weights_sha256}: give that one by --checkpoint, of a run that went on its "
            f"checkpoints/{told['step']}, without other flags than `clipjax embed` had "
            "(--which, --activation and the like), or embed the data with this one"
        )
    wanted, found = told.get("tokenizer_sha256"), _tokenizer_sha256(opened.model)
    if wanted is not None and found != wanted:  # none is kept of one that was not at hand
        raise ValueError(
            f"{index.directory} was made with another tokenizer, SHA-256 {wanted}; here it is "
            f"{found}: give its file by tokenizer=, or leave that out"
        )
    return opened


def _with_kept(index: Index, hints: Hints) -> Hints:
    """What is said, and where nothing is, what was said when the index was made."""
    kept = _read_hints(index)
    free = {n: value for n, value in kept.items() if getattr(hints, n) == getattr(NO_HINTS, n)}
    for name in _FILES:
        if name in free:
            _check_there(index, free[name], f"the {name}", name)
    return dataclasses.replace(hints, **free)


def _read_hints(index: Index) -> dict[str, Any]:
    """Reads the hints of an index.json, which may be from anywhere."""
    path, kept = index.directory / INDEX, index.about["model"].get("hints", {})
    if not isinstance(kept, dict) or not kept.keys() <= HINT_RULES.keys():
        raise ValueError(f"{path} is damaged, its model.hints is {kept!r:.80}")
    for name, value in kept.items():
        HINT_RULES[name].check(value, f"{path}: model.hints.{name}")
    if ":" in (kept.get("format") or ""):
        raise ValueError(f"{path} names code, format={kept['format']!r:.80}: give that by format=")
    lists = {"rename": lambda pairs: tuple(map(tuple, pairs)), "ignore": tuple}
    return {name: lists.get(name, lambda value: value)(value) for name, value in kept.items()}


def _check_there(index: Index, path: str, what: str, name: str) -> None:
    if not path.startswith(hub.PREFIX) and not local_path(path).exists():
        raise ValueError(
            f"{path} is not there, where {what} of {index.directory} was: say where it is by "
            f"{name}="
        )


def _kept_hints(hints: Hints) -> dict[str, Any]:
    """What was said, but for code of somebody's own: no index has that imported."""
    kept = {}
    for name in HINT_RULES:
        value = getattr(hints, name)
        if value == getattr(NO_HINTS, name) or (name == "format" and ":" in value):
            continue
        is_path = name in _FILES and not str(value).startswith(hub.PREFIX)
        kept[name] = os.path.abspath(value) if is_path else to_plain(value)
    return kept


def _tokenizer_sha256(model: Model) -> str | None:
    """Names the tokenizer; None where its vocabulary is not at hand."""
    if isinstance(model.tokenizer, MissingTokenizer) or not hasattr(model.tokenizer, "contract"):
        return None
    contract: Mapping[str, Any] = to_plain(model.tokenizer.contract())
    return sha256(json.dumps(contract, sort_keys=True))
