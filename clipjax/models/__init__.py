"""Models: encoders by name, named models, and building one from its spec."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.building import build
from clipjax.config import merge, to_plain
from clipjax.layers.execution import PLAIN, Execution, runtime_fields
from clipjax.models.bert import Bert
from clipjax.models.clip import CLIP, CLIPOutput
from clipjax.models.efficientnet import EfficientNet
from clipjax.models.modified_resnet import ModifiedResNet
from clipjax.models.naflex_vit import NaFlexVisionTransformer
from clipjax.models.perception_encoder import PerceptionEncoder
from clipjax.models.spec_ranges import MODEL, OPTIONAL_FIELDS, check_patches, check_spec
from clipjax.models.text_transformer import BidirectionalTransformer, TextTransformer
from clipjax.models.vit import VisionTransformer
from clipjax.models.zoo import MODELS
from clipjax.ranges import FieldError, nearest, unknown_key
from clipjax.trees import count_parameters, flatten_with_names

IMAGE_ENCODERS: dict[str, Any] = {
    "efficientnet": EfficientNet,
    "modified_resnet": ModifiedResNet,
    "naflex_vit": NaFlexVisionTransformer,
    "perception_encoder": PerceptionEncoder,
    "vit": VisionTransformer,
}
TEXT_ENCODERS: dict[str, Any] = {
    "bert": Bert,
    "bidirectional_transformer": BidirectionalTransformer,
    "causal_transformer": TextTransformer,
}

SPEC_FIELDS = tuple(field for field in MODEL if field not in OPTIONAL_FIELDS)

__all__ = ["CLIP", "IMAGE_ENCODERS", "MODELS", "TEXT_ENCODERS", "CLIPOutput", "build_model"]


def list_models() -> list[str]:
    """Lists the named models of the zoo, sorted as `clipjax models` prints them.

    A name says architecture, tokenizer and preprocessing: what `clipjax.load(FILE, model=NAME)`
    takes where a file cannot say, and `config.model.name` of a training.

    Example:
        >>> "ViT-B-32" in clipjax.list_models()
        True
    """
    return list(MODELS)


def resolve_spec(
    model: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turns a config's `model` into a whole spec: the zoo's row with the config's changes.

    Args:
        model: `name` and the fields that differ from the row of that name; for a name that is not
            in the zoo, all fields. None means "as in the row", but for `logit_bias` and
            `logit_scale.max`, where it means that there is none.
        base: the spec to change, in place of the row of that name.

    Raises:
        ValueError: an unknown name with fields missing, an unknown field, or a value out of range.
    """
    name = model.get("name", "")
    row = base if base is not None else MODELS.get(name, {}) if isinstance(name, str) else {}
    spec = merge(row, model)
    if "logit_bias" in model:
        spec["logit_bias"] = model["logit_bias"]
    scale = model.get("logit_scale")
    if isinstance(scale, Mapping) and "max" in scale:
        spec["logit_scale"]["max"] = scale["max"]
    for field in spec:
        if field not in MODEL:
            raise FieldError(unknown_key(f"model.{field}", MODEL))
    spec.setdefault("logit_bias", None)
    spec.setdefault("source", "")
    missing = [key for key in SPEC_FIELDS if key not in spec or spec[key] == {}]
    missing += [key for key in ("embed_dim", "image_size") if spec.get(key) is None]
    if missing:
        raise FieldError(
            f"model.name = {name!r} is no row of the zoo, and the model lacks "
            f"{', '.join(sorted(set(missing)))}: name a row, the nearest are "
            f"{nearest(str(name), MODELS)} (`clipjax models` lists all), or give every field"
        )
    check_spec(spec, "model")
    check_patches(spec, (row,) if row else MODELS.values(), "model")
    return spec


def build_model(
    spec: Mapping[str, Any],
    *,
    dtype: str = "float32",
    execution: Execution = PLAIN,
    tables_of: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> CLIP:
    """Builds the model that a spec describes.

    Args:
        spec: a whole spec, as of MODELS or `resolve_spec`.
        dtype: of the computation; parameters are float32.
        execution: how the towers run; a tower of one's own is given what it has a field for.
        tables_of: the spec whose position tables the parameters hold, where the model is one with
            smaller images or shorter texts: a stage of a run. None: `spec`.
        plugins: modules that the encoders' names may import, see `clipjax.building.resolve`.

    Raises:
        ValueError: an unknown encoder, or a field that the encoder does not have.
    """
    runtime = {"dtype": jnp.dtype(dtype), **runtime_fields(execution)}
    tables = spec if tables_of is None else tables_of
    image_encoder = build(
        spec["image"],
        IMAGE_ENCODERS,
        path="image",
        plugins=plugins,
        image_size=spec["image_size"],
        table_image_size=tables["image_size"],
        **runtime,
    )
    text_encoder = build(
        spec["text"],
        TEXT_ENCODERS,
        path="text",
        plugins=plugins,
        table_length=tables["text"]["context_length"],
        **runtime,
    )
    return CLIP(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        embed_dim=spec["embed_dim"],
        logit_scale_init=spec["logit_scale"]["init"],
        logit_bias_init=spec["logit_bias"],
        image_projection_kind=spec.get("image_projection", "linear"),
        text_projection_kind=spec.get("text_projection", "linear"),
        dtype=runtime["dtype"],
    )


def abstract_variables(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> Any:
    """The variables of a spec's model as shapes and dtypes; nothing is allocated."""
    model = build_model(spec, plugins=plugins)
    size, length = spec["image_size"], spec["text"]["context_length"]

    def init() -> Any:  # the key is drawn inside: no device is touched
        images, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
        return model.init(jax.random.key(0), images, tokens)

    return nn.unbox(jax.eval_shape(init))


def leaf_shapes(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes of a spec's variables by name, `params/...`, as training lays them out, stacked.

    Raises:
        ValueError: nothing can be built of the spec.
    """
    # What a model is called changes no shape, and a converted one is called after its folder.
    called = {field: "" for field in ("name", "source") if isinstance(spec.get(field), str)}
    return dict(_leaf_shapes(json.dumps({**to_plain(spec), **called}), tuple(plugins)))


@functools.lru_cache(maxsize=16)
def _leaf_shapes(spec_json: str, plugins: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    try:
        variables = abstract_variables(json.loads(spec_json), plugins)
    except ValueError:
        raise
    except Exception as error:  # a spec of a file may hold anything, and the towers are traced
        text = " ".join(str(error).split())
        raise ValueError(
            f"no model can be built of the spec: {type(error).__name__}: {text:.300}"
        ) from error
    return {name: leaf.shape for name, leaf in flatten_with_names(variables)}


def count_model_parameters(spec: Mapping[str, Any]) -> dict[str, int]:
    """Counts the parameters of a spec, from shapes alone: `image`, `text` and `total`.

    The projections belong to their towers; the total also holds the scale and the bias.
    """
    params = abstract_variables(spec)["params"]
    counts = {
        part: count_parameters({k: v for k, v in params.items() if k.startswith(part)})
        for part in ("image", "text")
    }
    return {**counts, "total": count_parameters(params)}
