"""Shapes of a model's leaves by our names, from its spec alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.building import resolve
from clipjax.interop.tensors import WeightFileError
from clipjax.models import IMAGE_ENCODERS, SPEC_FIELDS, TEXT_ENCODERS, leaf_shapes
from clipjax.models.layers_layout import unstacked_shapes
from clipjax.ranges import IMAGE_SIZE, Group
from clipjax.tokenizers import TOKENIZERS

Shapes = dict[str, tuple[int, ...]]


def check_spec(spec: Mapping[str, Any], *, where: str, plugins: Sequence[str] = ()) -> None:
    """Checks that a spec from a file is whole and names nothing but towers of ours and plug-ins.

    Raises:
        WeightFileError: names what is missing, unknown, or a module that is no plug-in.
    """
    missing = [field for field in SPEC_FIELDS if field not in spec]
    if missing:
        raise WeightFileError(f"{where}: the model spec lacks {', '.join(missing)}")
    tables = {"image": IMAGE_ENCODERS, "text": TEXT_ENCODERS, "tokenizer": TOKENIZERS}
    try:
        IMAGE_SIZE.check(spec["image_size"], f"{where}: image_size")
        for field, table in tables.items():
            Group("with a `name`").check(spec[field], f"{where}: {field}")
            resolve(spec[field].get("name"), table, path=f"{where}: {field}", plugins=plugins)
    except ValueError as error:
        raise WeightFileError(str(error)) from error


def stacked_shapes(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> Shapes:
    """Shapes as training lays the leaves out, `params/.../blocks/...`; nothing is allocated."""
    check_spec(spec, where=f"model {spec.get('name')!r}", plugins=plugins)
    return leaf_shapes(spec, plugins)


def expected_shapes(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> Shapes:
    """Shapes of all leaves by our unrolled names without root; nothing is allocated."""
    shapes = unstacked_shapes(stacked_shapes(spec, plugins))
    return {name.removeprefix("params/"): shape for name, shape in shapes.items()}
