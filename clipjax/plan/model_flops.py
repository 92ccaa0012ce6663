"""FLOPs that a model needs for one example, from its spec: what MFU divides by.

Two per multiply-add, matrix products only. For a transformer of `depth` blocks over `n` tokens of
`width` w with MLPs of `mlp_dim` m:

    forward = depth n (8 w^2 + 4 w m + 4 n w)

that is 2 N n for its N block parameters, and the two products of attention, full also where a mask
is causal. The image tower adds its patch embedding, 2 (patches) (3 patch_size^2) w. Training is
three times the forward pass (6 N n): once forward, twice backward, nothing recomputed; a locked
tower is passed once. The loss adds 6 B D for a batch B of embeddings D.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from clipjax.experiment import Stage
from clipjax.experiment.memory import num_image_tokens
from clipjax.layers.execution import PLAIN

# Towers that the formula describes; others are traced.
FORMULA_TOWERS = ("vit", "causal_transformer")


class ModelFlops(NamedTuple):
    """FLOPs of one example.

    Attributes:
        image: forward pass of the image tower.
        text: forward pass of the text tower.
        loss: forward and backward.
        train: all of a training step's share.
        source: "formula", or "traced" where a tower is not one of FORMULA_TOWERS.
    """

    image: float
    text: float
    loss: float
    train: float
    source: str


def model_flops(
    spec: Mapping[str, Any],
    model: Any,
    batch_size: int,
    *,
    lock_image: bool = False,
    lock_text: bool = False,
) -> ModelFlops:
    """FLOPs of one example of a training step.

    Args:
        spec: the model spec.
        model: the module of the spec, traced where the formula does not know a tower.
        batch_size: global batch, for the loss.
        lock_image: whether the image tower takes no gradient.
        lock_text: whether the text tower takes none.
    """
    known = spec["image"].get("pooling") in ("cls", "mean")
    for tower in ("image", "text"):
        known &= spec[tower]["name"] in FORMULA_TOWERS
        known &= spec.get(f"{tower}_projection", "linear") == "linear"
    if known:
        image, text = image_flops(spec), text_flops(spec)
    else:
        image, text = traced_flops(spec, model)
    loss = 6.0 * batch_size * spec["embed_dim"]
    train = (1 if lock_image else 3) * image + (1 if lock_text else 3) * text + loss
    return ModelFlops(image, text, loss, train, "formula" if known else "traced")


def flops_of(stage: Stage) -> ModelFlops:
    """FLOPs of one example of a stage of a run."""
    return model_flops(
        stage.spec,
        stage.model,
        stage.batch_size,
        lock_image=stage.is_locked("image"),
        lock_text=stage.is_locked("text"),
    )


def forward_size(stages: Sequence[Stage]) -> tuple[int, float]:
    """What a run takes by the measure of scaling laws, whatever it recomputes or freezes.

    Returns:
        (examples of all stages, FLOPs of both towers' forward passes for one example: the mean).
    """
    examples = [stage.num_examples for stage in stages]
    needs = [flops_of(stage) for stage in stages]
    total = sum(n * (each.image + each.text) for n, each in zip(examples, needs, strict=True))
    return sum(examples), total / sum(examples)


def image_flops(spec: Mapping[str, Any]) -> float:
    """Forward pass of a ViT and its projection, one image."""
    image, width = spec["image"], spec["image"]["width"]
    patches = (spec["image_size"] // image["patch_size"]) ** 2
    embedding = 2.0 * patches * 3 * image["patch_size"] ** 2 * width
    return embedding + _blocks(image, num_image_tokens(spec)) + 2.0 * width * spec["embed_dim"]


def text_flops(spec: Mapping[str, Any]) -> float:
    """Forward pass of a text transformer and its projection, one text."""
    text = spec["text"]
    return _blocks(text, text["context_length"]) + 2.0 * text["width"] * spec["embed_dim"]


def _blocks(tower: Mapping[str, Any], tokens: int) -> float:
    width, mlp = tower["width"], tower["mlp_dim"]
    return 1.0 * tower["depth"] * tokens * (8 * width**2 + 4 * width * mlp + 4 * tokens * width)


def traced_flops(spec: Mapping[str, Any], model: Any) -> tuple[float, float]:
    """Counts the products of both towers' forward passes in the traced program, one example."""
    size, length = spec["image_size"], spec["text"]["context_length"]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    model = model.under(PLAIN)  # the products of a kernel are not in the trace
    variables = jax.eval_shape(model.init, jax.random.key(0), images, tokens)

    def count(method: str, inputs: jax.ShapeDtypeStruct) -> float:
        def encode(variables: Any, inputs: jax.Array) -> Any:
            return model.apply(
                variables,
                inputs,
                train=True,
                method=method,
                rngs={"dropout": jax.random.key(0)},
                mutable=[collection for collection in variables if collection != "params"],
            )

        return _count(jax.make_jaxpr(encode)(variables, inputs).jaxpr)

    return count("encode_image", images), count("encode_text", tokens)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features_out = kernel[params["dimension_numbers"].rhs_spec[0]]
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * out * math.prod(kernel) / features_out
        times = params.get("length", 1) if name == "scan" else 1
        for inner_jaxpr in jaxprs_in_params(params):
            total += times * _count(inner_jaxpr)
    return total
