"""Shapes of a model's leaves by our names, from its spec alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.building import check_name
from clipjax.interop.tensors import WeightFileError
from clipjax.models import IMAGE_ENCODERS, SPEC_FIELDS, TEXT_ENCODERS, leaf_shapes
from clipjax.models.layers_layout import unstacked_shapes
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
    if type(spec["image_size"]) is not int:
        raise WeightFileError(
            f"{where}: image_size is {str(spec['image_size'])[:80]}, expected one number: images "
            "are square"
        )
    tables = {"image": IMAGE_ENCODERS, "text": TEXT_ENCODERS, "tokenizer": TOKENIZERS}
    for field, table in tables.items():
        name = spec[field].get("name") if isinstance(spec[field], Mapping) else None
        if isinstance(name, str) and ":" in name:
            try:
                check_name(name, plugins, path=f"{where}: {field}")
            except ValueError as error:
                raise WeightFileError(str(error)) from error
        elif name not in table:
            raise WeightFileError(
                f"{where}: {field}.name is {str(name)[:80]!r}; converted are {', '.join(table)}"
            )


def stacked_shapes(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> Shapes:
    """Shapes as training lays the leaves out, `params/.../blocks/...`; nothing is allocated."""
    check_spec(spec, where=f"model {spec.get('name')!r}", plugins=plugins)
    return leaf_shapes(spec, plugins)


def expected_shapes(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> Shapes:
    """Shapes of all leaves by our unrolled names without root; nothing is allocated."""
    shapes = unstacked_shapes(stacked_shapes(spec, plugins))
    return {name.removeprefix("params/"): shape for name, shape in shapes.items()}
