"""The exact tiled loss over a mesh: one custom_vjp, its forward and backward each a shard_map.

With logits `S`, weights `W = directions * batch * dloss/dS` and unit embeddings x, y:
`dloss/dx_i = scale / (directions batch) sum_j W_ij y_j`, likewise for y with `W.T`, and
`dloss/dlogit_scale = sum_i <x_i, dloss/dx_i>`, which costs nothing beside the tiles.
Saved between the passes: one or two numbers an example, and the blocks that were gathered.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from clipjax.array_types import Array
from clipjax.losses.equal_rows import Keys
from clipjax.losses.layouts import AnyLayout
from clipjax.losses.pair_rule import Stats
from clipjax.losses.tiles import Affine, Norms


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pair_loss(
    layout: AnyLayout,
    mesh: Mesh | AbstractMesh | None,
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    logit_bias: Array | None,
    keys: Keys | None,
) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics, of which only the loss carries a gradient.

    Args:
        layout: how the logits are computed.
        mesh: that the arrays, which are global, are cut over; None where they are this device's
            slices already: inside a shard_map, or on one device.
        image_embeds: `[batch, embed]`, of the global batch or of the slice.
        text_embeds: likewise.
        logit_scale: the LOG of the scale.
        logit_bias: `[]`, or None.
        keys: of equal_rows.row_keys; examples of equal ones are positives of each other. None: an
            example's own pair is its only positive.
    """
    outputs, _ = _forward(layout, mesh, image_embeds, text_embeds, logit_scale, logit_bias, keys)
    return outputs


def _forward(layout: AnyLayout, mesh: Mesh | AbstractMesh | None, *inputs: Any) -> Any:
    spec = _batch_spec(layout)
    run: Callable[..., Any] = functools.partial(_local_forward, layout)
    if mesh is not None:
        in_specs = (spec, spec, PartitionSpec(), PartitionSpec(), spec)
        out_specs = (PartitionSpec(), (spec, spec))
        run = _shard_map(run, mesh, in_specs, out_specs)
    outputs, (residuals, kept) = run(*inputs)
    return outputs, (inputs, residuals, kept)


def _backward(
    layout: AnyLayout, mesh: Mesh | AbstractMesh | None, saved: Any, cotangents: Any
) -> Any:
    inputs, residuals, kept = saved
    spec, everywhere = _batch_spec(layout), PartitionSpec()
    run: Callable[..., Any] = functools.partial(_local_backward, layout)
    if mesh is not None:
        in_specs = ((spec, spec, everywhere, everywhere, spec), spec, spec, everywhere)
        out_specs = (spec, spec, everywhere, everywhere)
        run = _shard_map(run, mesh, in_specs, out_specs)
    return *run(inputs, residuals, kept, cotangents[0]), None


pair_loss.defvjp(_forward, _backward)


def _shard_map(
    run: Callable[..., Any], mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    # A mesh of the context that has been given by name of its axes alone has no devices to say.
    in_context = mesh == jax.sharding.get_abstract_mesh()
    given: Any = None if in_context else mesh
    return jax.shard_map(run, mesh=given, in_specs=in_specs, out_specs=out_specs)


def _batch_spec(layout: AnyLayout) -> PartitionSpec:
    return PartitionSpec(layout.devices.axes) if layout.devices.axes else PartitionSpec()


def _local_forward(
    layout: AnyLayout,
    image: Array,
    text: Array,
    logit_scale: Array,
    logit_bias: Array | None,
    keys: Keys | None,
) -> Any:
    batch = image.shape[0] * layout.devices.num_devices
    image, text = image.astype(layout.dtype), text.astype(layout.dtype)
    affine = _affine(logit_scale, logit_bias)
    cosine, positives = _positives(image, text, affine)
    rows, columns, kept = layout.forward(*layout.sides(image, text, keys), affine)
    sums = {
        "loss": jnp.sum(layout.rule.example_loss(positives, rows, columns)),
        "image_to_text": jnp.sum(_best(positives, rows) > rows.max, dtype=jnp.float32),
        "text_to_image": jnp.sum(_best(positives, columns) > columns.max, dtype=jnp.float32),
        "positive": jnp.sum(cosine),
        "image": jnp.sum(image, axis=0, dtype=jnp.float32),
        "text": jnp.sum(text, axis=0, dtype=jnp.float32),
    }
    share = None
    if rows.positives is not None:
        total, count = rows.positives.total, rows.positives.count
        if affine.bias is not None:
            total = total - affine.bias * count
        sums["positive"] = sums["positive"] + jnp.sum(total) / affine.scale
        sums["others"] = jnp.sum(count)
        share = 1.0 / (count + 1.0)
    sums = _sum_together(layout, sums)
    num_positives = batch + sums["others"] if "others" in sums else batch
    # The sum of all cosines is one product of two sums: no second pass over the pairs.
    negative = jnp.vdot(sums["image"], sums["text"], precision="highest") - sums["positive"]
    metrics = {
        "image_to_text_top1": sums["image_to_text"] / batch,
        "text_to_image_top1": sums["text_to_image"] / batch,
        "positive_cosine": sums["positive"] / num_positives,
        "negative_cosine": negative / max(batch * (batch - 1.0), 1.0),
        "logit_scale": affine.scale,
    }
    if "others" in sums:
        num_negatives = jnp.maximum(batch * (batch - 1.0) - sums["others"], 1.0)
        metrics["negative_cosine"] = negative / num_negatives
        metrics["positives_per_example"] = 1.0 + sums["others"] / batch
    residuals = layout.rule.residuals(rows, columns), share
    return (sums["loss"] / batch, metrics), (residuals, kept)


def _local_backward(
    layout: AnyLayout, inputs: Any, residuals: Any, kept: Any, cotangent: Array
) -> Any:
    *given, logit_scale, logit_bias, keys = inputs
    residuals, share = residuals
    # As the forward pass rounded them; their gradient is not rounded with them.
    image, text = (x.astype(layout.dtype) for x in given)
    batch = image.shape[0] * layout.devices.num_devices
    affine = _affine(logit_scale, logit_bias)
    _, positives = _positives(image, text, affine)
    of_rows, of_columns = layout.rule.normalisers(positives, residuals)
    # A row and the column of the same example have as many positives.
    normalisers = Norms(of_rows, share), Norms(of_columns, share)
    sides = layout.sides(image, text, keys)
    gradients = layout.backward(*sides, normalisers, kept, affine)

    diagonal = layout.rule.positive_weights(positives, residuals, share)
    factor = cotangent / (layout.rule.directions * batch)
    d_image = factor * affine.scale * (gradients.rows + diagonal[:, None] * text)
    d_text = factor * affine.scale * (gradients.columns + diagonal[:, None] * image)
    sums = {"scale": jnp.sum(image * d_image)}
    if gradients.bias is not None:
        sums["bias"] = factor * (gradients.bias + jnp.sum(diagonal))
    sums = _sum_together(layout, sums)
    d_bias = None if logit_bias is None else sums["bias"].astype(logit_bias.dtype)
    return (
        d_image.astype(given[0].dtype),
        d_text.astype(given[1].dtype),
        sums["scale"].astype(logit_scale.dtype),
        d_bias,
    )


def _affine(logit_scale: Array, logit_bias: Array | None) -> Affine:
    bias = None if logit_bias is None else logit_bias.astype(jnp.float32)
    return Affine(jnp.exp(logit_scale.astype(jnp.float32)), bias)


def _positives(image: Array, text: Array, affine: Affine) -> tuple[Array, Array]:
    """Cosines and logits of the matching pairs, which live on one device."""
    cosine = jnp.sum(image.astype(jnp.float32) * text.astype(jnp.float32), axis=1)
    logits = affine.scale * cosine
    return cosine, logits if affine.bias is None else logits + affine.bias


def _best(positives: Array, stats: Stats) -> Array:
    """The largest logit among an example's positives."""
    if stats.positives is None:
        return positives
    return jnp.maximum(positives, stats.positives.max)


def _sum_together(layout: AnyLayout, sums: dict[str, Array]) -> dict[str, Array]:
    """Sum over devices in one collective instead of one for each number."""
    flat, unravel = jax.flatten_util.ravel_pytree(sums)
    return unravel(layout.devices.psum(flat))
