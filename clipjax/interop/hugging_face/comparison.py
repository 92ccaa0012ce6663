"""Whether two specs are one model, and which row of the zoo a spec is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clipjax.config import to_plain
from clipjax.interop.tensors import WeightFileError
from clipjax.layers.initializers import BLOCK_INITS
from clipjax.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS
from clipjax.ranges import RATE, Choice, Number, Optional, Rule, Text

_SCALE = Number(1e-6, 1e6)
_INIT = Choice(tuple(BLOCK_INITS))
# Dotted fields that change no number of a trained model, and what they may hold.
UNSAID: dict[str, Rule] = {
    "name": Text(),
    "source": Text(),
    "logit_scale.init": _SCALE,
    "logit_scale.max": Optional(_SCALE),
    "logit_bias": Number(-1e6, 1e6),
    "image.init_name": _INIT,
    "image.patch_dropout": RATE,
    "image.dropout": RATE,
    "image.drop_connect": RATE,
    "text.init_name": _INIT,
    "text.dropout": RATE,
}
# Filled in when a model is built, and so no part of a spec.
_RUNTIME = ("parent", "name", "dtype", "execution", "remat", "image_size")


def complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as plain data with the encoders' defaults written out."""
    spec = dict(to_plain(spec))
    for tower, table in (("image", IMAGE_ENCODERS), ("text", TEXT_ENCODERS)):
        encoder = table.get(spec[tower]["name"])
        if encoder is not None:
            defaults = {
                field.name: field.default
                for field in dataclasses.fields(encoder)
                if field.default is not dataclasses.MISSING and field.name not in _RUNTIME
            }
            spec[tower] = {**defaults, **spec[tower]}
    spec["preprocess"] = {"crop_fraction": 1.0, **spec["preprocess"]}
    return {"image_projection": "linear", "text_projection": "linear", "logit_bias": None, **spec}


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, value in a, value in b) wherever two plain trees differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = []
        for key in sorted(a.keys() | b.keys()):
            found += differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
        return found
    return [] if a == b and isinstance(a, bool) == isinstance(b, bool) else [(path, a, b)]


def is_unsaid(difference: tuple[str, Any, Any]) -> bool:
    """Whether a difference is one that config.json does not tell and no number depends on."""
    field, *values = difference
    # A bias that is there or not is one parameter more or less.
    return field in UNSAID and not (field == "logit_bias" and None in values)


def different_numbers(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields in which two specs compute something different."""
    return [x for x in differences(complete(a), complete(b)) if not is_unsaid(x)]


def row_of(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of the zoo that is this model, with the tokenizer that the spec has."""
    for row in MODELS.values():
        row = {**to_plain(row), "tokenizer": spec["tokenizer"]}
        if not different_numbers(spec, row):
            return row
    return None


def own_spec(own: Any, found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The spec that a directory of ours carries, if it is the one that the other files describe.

    Raises:
        WeightFileError: it is no spec, or contradicts the other files.
    """
    fields = own if isinstance(own, Mapping) else {}
    parts: list[Any] = [fields.get(name) for name in ("image", "text", "preprocess", "tokenizer")]
    if not all(isinstance(x, Mapping) for x in parts) or not all(
        isinstance(x.get("name"), str) for x in parts[:2]
    ):
        raise WeightFileError(f"{where} is {own!r:.80}, expected a model spec; remove the field")
    wanted = complete(own)
    for difference in differences(complete(found), wanted):
        field, theirs, ours = difference
        if not is_unsaid(difference):
            raise WeightFileError(
                f"{where}.{field} is {ours!r:.80}, the other fields and files say {theirs!r:.80}; "
                "make them equal, or remove the field"
            )
        if not UNSAID[field].accepts(ours):
            raise WeightFileError(f"{where}.{field} is {ours!r:.80}, which it cannot be")
    return dict(own)
