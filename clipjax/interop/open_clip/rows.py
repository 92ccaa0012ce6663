"""Which model a file of weights is: the row of the zoo that its sizes and the hints leave."""

from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from clipjax.config import merge, to_plain
from clipjax.interop.open_clip.shapes import positions_of, sizes_of
from clipjax.interop.weights import Hints
from clipjax.models.zoo import MODELS
from clipjax.ranges import nearest

Spec = dict[str, Any]
CUSTOM = "custom"  # the name of a model whose sizes no row has
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


def settle(
    draft: Mapping[str, Any], hints: Hints, *, where: str, config: str = "open_clip_config.json"
) -> Spec:
    """Completes a draft by the zoo and by what a person says.

    Returns:
        The whole spec.

    Raises:
        ValueError: several models of the zoo have these sizes, and it says what to add; or a hint
            contradicts the file.
    """
    found = _of_model(draft, hints.model, where) if hints.model else _distinct(candidates(draft))
    if hints.activation:
        _check_hints(hints)
        found = _with_activation(found, hints.activation)
    if len(found) != 1:
        raise ValueError(_question(found, where, config))
    spec = found[0]
    if spec["name"] == CUSTOM:
        heads = [spec[tower]["num_heads"] for tower in ("image", "text")]
        logging.warning(
            "%s has the sizes of no model of the zoo: it is taken to have %d and %d heads, which "
            "no shape says; a folder with %s does",
            where,
            *heads,
            config,
        )
    elif not (hints.model or hints.activation):
        logging.info(
            "%s has the sizes of %s: its activation %s, normalisation and preprocessing are used",
            where,
            spec["name"],
            activation_of(spec),
        )
    return spec


def candidates(draft: Mapping[str, Any]) -> list[Spec]:
    """The rows of the zoo of equal sizes; or if none, the draft as each kind of its family."""
    same = [row for row in MODELS.values() if sizes_of(row) == sizes_of(draft)]
    same = [row for row in same if positions_of(row) == positions_of(draft)]
    if same:
        return [_with_bias(to_plain(row), draft) for row in same]
    family: dict[str, Spec] = {}
    for row in MODELS.values():
        if _form(row) == _form(draft):
            family.setdefault(activation_of(row), row)
    return [_as_custom(to_plain(row), draft) for row in family.values()]


def activation_of(spec: Mapping[str, Any]) -> str:
    """The activation of a spec's towers; a ResNet has none, so that the text tower's counts."""
    return spec["image"].get("activation", spec["text"]["activation"])


def _of_model(draft: Mapping[str, Any], name: str, where: str) -> list[Spec]:
    """The row of a name; only its pixels and its context may be other than the file's."""
    if name not in MODELS:
        same = _names(candidates(draft))
        raise ValueError(
            f"model={name!r} is no row of the zoo (`clipjax models` lists all), the nearest are "
            f"{nearest(name, MODELS)}; {where} has the sizes of {same}"
        )
    row = to_plain(MODELS[name])
    theirs, ours = sizes_of(draft), sizes_of(row)
    wrong = [k for k in theirs if theirs[k] != ours.get(k)]
    if wrong:
        lines = [f"{k} {theirs[k]!r} in the file, {ours.get(k)!r} in {name}" for k in wrong]
        raise ValueError(
            f"model={name!r}: {where} is another model: {'; '.join(lines)}; it has the sizes of "
            f"{_names(candidates(draft))}"
        )
    return [_with_positions(row, draft)]


def _with_bias(spec: Spec, draft: Mapping[str, Any]) -> Spec:
    """OpenCLIP trains any model with the sigmoid loss, whose bias is one parameter more."""
    if (spec["logit_bias"] is None) == (draft["logit_bias"] is None):
        return spec
    return {**spec, "logit_bias": draft["logit_bias"]}


def _with_positions(row: Spec, draft: Mapping[str, Any]) -> Spec:
    changes: Spec = {}
    if positions_of(row)["image grid"] != positions_of(draft)["image grid"]:
        changes["image_size"] = draft["image_size"]
    if "context_length" in draft["text"]:
        changes["text"] = {"context_length": draft["text"]["context_length"]}
    return _with_bias(merge(row, changes), draft)


def _form(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What models of one family share."""
    image, text = spec["image"], spec["text"]
    projection = spec.get("image_projection", "linear")
    return (image["name"], image.get("pooling"), text["name"], text["vocab_size"], projection)


def _as_custom(row: Spec, draft: Mapping[str, Any]) -> Spec:
    """The draft with the constants of a row of its family."""
    spec = _with_bias(merge(row, {**draft, "name": CUSTOM, "source": ""}), draft)
    if spec["image"].get("positions") == "sincos2d":
        spec["image"]["positions"] = "learned"
    # Said by the draft, but as in every row that leaves it out.
    if spec["image"].get("pre_norm") and "pre_norm" not in row["image"]:
        del spec["image"]["pre_norm"]
    if spec["text_projection"] == "linear" and "text_projection" not in row:
        del spec["text_projection"]
    for tower in ("image", "text"):
        spec[tower]["num_heads"] = _num_heads(spec[tower], tower)
    return spec


def _num_heads(tower: Mapping[str, Any], kind: str) -> int:
    """As in the zoo's towers of that width, or else heads of 64; no shape says it."""
    width = tower["width"]
    for row in MODELS.values():
        if row[kind]["name"] == tower["name"] and row[kind]["width"] == width:
            return row[kind]["num_heads"]
    return max(1, (32 * width if tower["name"] == "modified_resnet" else width) // 64)


def _distinct(specs: Iterable[Spec]) -> list[Spec]:
    """One of each group that differ in their names alone, such as RN50 and RN50-quickgelu."""
    found: list[Spec] = []
    for spec in specs:
        bare = {**spec, "name": "", "source": ""}
        if all({**other, "name": "", "source": ""} != bare for other in found):
            found.append(spec)
    return found


def _check_hints(hints: Hints) -> None:
    """A name says the activation; another one is a mistake where the zoo has a row for it.

    OpenCLIP runs weights of SigLIP and CLIPA with another activation than those who trained them,
    so there both may be said.
    """
    row = MODELS.get(hints.model or "")
    if row is None or row["text"]["name"] == "bidirectional_transformer":
        return
    if hints.activation != activation_of(row):
        base = row["name"].removesuffix("-quickgelu")
        others = [name for name in (base, f"{base}-quickgelu") if name in MODELS]
        fitting = [name for name in others if activation_of(MODELS[name]) == hints.activation]
        raise ValueError(
            f"model={row['name']!r} has {activation_of(row)}, activation={hints.activation!r} says "
            f"otherwise: give {f'model={fitting[0]!r}' if fitting else 'one of the two'} alone"
        )


def _with_activation(found: list[Spec], activation: str) -> list[Spec]:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is unknown; allowed are {', '.join(ACTIVATIONS)}"
        )
    fitting = [spec for spec in found if activation_of(spec) == activation]
    # None has it: the person knows better than the zoo, as with SigLIP's weights in OpenCLIP.
    said = {"activation": activation}
    return fitting or _distinct(
        merge(spec, {k: said for k in ("image", "text") if "activation" in spec[k]})
        for spec in found
    )


def _names(specs: Iterable[Spec]) -> str:
    return ", ".join(x["name"] for x in specs if x["name"] != CUSTOM) or "no row of the zoo"


def _question(found: list[Spec], where: str, config: str) -> str:
    if not found:
        return f"{where}: no model of the zoo is of its kind"
    activations = [activation_of(spec) for spec in found]
    choices = []
    for spec in found:
        if spec["name"] != CUSTOM:
            mean = ", ".join(f"{x:.3g}" for x in spec["preprocess"]["mean"])
            choices.append(f"model={spec['name']!r} ({activation_of(spec)}, pixel means {mean})")
    if len(set(activations)) == len(found):
        choices.append(f"activation={' | '.join(map(repr, activations))}")
    return (
        f"{where} does not say its activation and preprocessing, and its sizes leave open which "
        f"model it is; add {', or '.join(choices)}. Or give the folder with its {config}, which "
        "says it"
    )
