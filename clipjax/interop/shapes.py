"""Shapes of a model's leaves by our names, from its spec alone."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from clipjax.config import to_plain
from clipjax.interop.tensors import WeightFileError
from clipjax.models import IMAGE_ENCODERS, SPEC_FIELDS, TEXT_ENCODERS, abstract_variables
from clipjax.tokenizers import TOKENIZERS
from clipjax.trees import flatten_with_names

STACK = re.compile(r"^(.*/)blocks/(.*)$")
Shapes = dict[str, tuple[int, ...]]


def check_spec(spec: Mapping[str, Any], *, where: str) -> None:
    """Checks that a spec from a file is whole and names nothing but towers of ours.

    A spec may name a class of any module (`my_lab.towers:MyViT`), which building it would import
    and call: a file from elsewhere may not.

    Raises:
        WeightFileError: names what is missing or unknown.
    """
    missing = [field for field in SPEC_FIELDS if field not in spec]
    if missing:
        raise WeightFileError(f"{where}: the model spec lacks {', '.join(missing)}")
    tables = {"image": IMAGE_ENCODERS, "text": TEXT_ENCODERS, "tokenizer": TOKENIZERS}
    for field, table in tables.items():
        name = spec[field].get("name") if isinstance(spec[field], Mapping) else None
        if name not in table:
            raise WeightFileError(
                f"{where}: {field}.name is {str(name)[:80]!r}; converted are {', '.join(table)}"
            )


def stacked_shapes(spec: Mapping[str, Any]) -> Shapes:
    """Shapes as training lays the leaves out, `params/.../blocks/...`; nothing is allocated."""
    check_spec(spec, where=f"model {spec.get('name')!r}")
    return dict(_trace(json.dumps(to_plain(spec))))


@functools.lru_cache(maxsize=16)
def _trace(spec_json: str) -> Shapes:
    variables = abstract_variables(json.loads(spec_json))
    return {name: leaf.shape for name, leaf in flatten_with_names(variables)}


def expected_shapes(spec: Mapping[str, Any]) -> Shapes:
    """Shapes of all leaves by our unrolled names without root; nothing is allocated."""
    shapes: Shapes = {}
    for name, shape in stacked_shapes(spec).items():
        name = name.removeprefix("params/")
        match = STACK.match(name)
        if match is None:
            shapes[name] = shape
            continue
        for i in range(shape[0]):
            shapes[f"{match[1]}block_{i}/{match[2]}"] = shape[1:]
    return shapes
