"""From a config.json to a model spec and back.

What transformers' config cannot say (name, source, the clamp of the scale, how a new model would
be drawn) goes into one field of its own, `clipjax`, which transformers carries along unread.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from clipjax.config import to_plain
from clipjax.interop.hugging_face import (
    align,
    chinese_clip,
    clip,
    dual_encoder,
    metaclip2,
    siglip,
    siglip2,
)
from clipjax.interop.hugging_face.comparison import complete, different_numbers
from clipjax.interop.section import Section
from clipjax.interop.tensors import WeightFileError

# model_type: the module that knows the family.
FAMILIES: dict[str, ModuleType] = {
    "clip": clip,
    "metaclip_2": metaclip2,
    "siglip": siglip,
    "siglip2": siglip2,
    "align": align,
    "chinese_clip": chinese_clip,
    "vision-text-dual-encoder": dual_encoder,
}
OWN_FIELD = "clipjax"
CONVERT = "write target_format='clipjax', or target_format='open_clip' where OpenCLIP has the model"


def read_config(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any], Any]:
    """Gives what a config.json says.

    Returns:
        The model_type, a key of FAMILIES; a spec whose tokenizer and preprocessing are the
        family's usual ones; and the field `clipjax`, unchecked, or None.

    Raises:
        WeightFileError: names the field that is not supported.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise WeightFileError(
            f"{where}.model_type is {kind!r:.80}; supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    top = Section(config, where, family.DEFAULTS)
    text = _section(top, "text", family.TEXT_DEFAULTS)
    vision = _section(top, "vision", family.VISION_DEFAULTS)
    spec = family.spec_of(top, text, vision)
    own = top.get(OWN_FIELD)
    for section in (top, text, vision):
        section.close()
    return kind, to_plain(spec), own


def write_config(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Gives the family and the config.json of a spec.

    Raises:
        ValueError: transformers has no such model; the field is named.
    """
    wanted = complete(spec)
    refusals = []
    for kind in _families_of(wanted):
        try:
            return kind, {**_config_of(wanted, kind), OWN_FIELD: to_plain(spec)}
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]


def _config_of(wanted: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a whole spec in one family."""
    family = FAMILIES[kind]
    try:
        config = family.config_of(wanted)
    except KeyError as error:
        raise ValueError(
            f"transformers has no such model: image.name is {wanted['image']['name']!r}, which is "
            f"no tower of {family.ARCHITECTURE} (no field {error}); {CONVERT}"
        ) from error
    head = {"architectures": [family.ARCHITECTURE], "model_type": kind}
    config = to_plain({**head, **config, "torch_dtype": "float32"})
    try:
        _, found, _ = read_config(config, "config.json")
    except WeightFileError as error:
        raise ValueError(f"transformers has no such model: {error}; {CONVERT}") from error
    for field, theirs, ours in different_numbers(found, wanted):
        if not field.startswith(family.IN_OTHER_FILES):
            raise ValueError(
                f"transformers has no such model: {field} is {ours!r}, in {family.ARCHITECTURE} "
                f"it is {theirs!r}; {CONVERT}"
            )
    return dict(config)


def _section(config: Section, name: str, defaults: Any) -> Section:
    """`text_config` or `vision_config`; the older `..._dict`, where given, goes before it.

    What absent fields mean is an object, or a function of the object where several classes may
    stand in its place.
    """
    values, older = config.get(f"{name}_config"), config.get(f"{name}_config_dict")
    values = {} if values is None else values
    where = f"{config.where}: {name}_config"
    if callable(defaults):
        defaults = defaults(values if isinstance(values, Mapping) else {})
    section = Section(values, where, defaults)
    if older is None:
        return section
    # As in transformers: its absent fields are the defaults, whatever the newer object holds.
    Section(older, f"{where}_dict")
    return Section({**values, **defaults, **older}, f"{where}_dict")


def _families_of(spec: Mapping[str, Any]) -> list[str]:
    """The families of both towers; else the first of the text's, whose message tells the rest."""
    image, text = spec["image"]["name"], spec["text"]["name"]
    kinds = [kind for kind, family in FAMILIES.items() if text == family.TEXT_ENCODER]
    if not kinds:
        raise ValueError(f"transformers has no such model: text.name is {text!r}; {CONVERT}")
    return [kind for kind in kinds if image == FAMILIES[kind].IMAGE_ENCODER] or kinds[:1]
