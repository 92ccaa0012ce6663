"""The kernels of `short_attention` in Pallas for TPUs: one block is whole rows of a few images.

Scores are made transposed, [keys, queries]: the softmax then reduces over sublanes, which is
elementwise work, and of the backward pass's three products with scores only one has to turn them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from clipjax.array_types import Array, Bool, Float, Int
from clipjax.layers.short_attention_blocks import Blocks, attention_flops

# Contracted dimensions of the two sides.
_LAST_LAST = (((1,), (1,)), ((), ()))
_LAST_FIRST = (((1,), (0,)), ((), ()))
_FIRST_FIRST = (((0,), (0,)), ((), ()))
# As jax.nn.dot_product_attention: finite, so that a row without keys is finite, too.
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def forward(
    qkv: Float[Array, "batch length lanes"],
    valid: Int[Array, " batch"] | Bool[Array, "batch length"] | None,
    blocks: Blocks,
    *,
    causal: bool,
    interpret: bool,
) -> Float[Array, "batch length width"]:
    """Attention of every head, in the lanes of its queries.

    Args:
        qkv: queries, keys and values side by side in the last dimension, 3 x width.
        valid: keys of each row that are attended to: their number, or True for each.
        blocks: how to cut it.
        causal: whether a query sees no later key.
        interpret: in place of compiling for a TPU.
    """
    batch, length, lanes = qkv.shape
    out = jax.ShapeDtypeStruct((batch, length, lanes // 3), qkv.dtype)
    kernel = functools.partial(_forward_kernel, blocks=blocks, causal=causal)
    return _call("forward", kernel, (qkv,), valid, out, blocks, interpret)


def backward(
    qkv: Float[Array, "batch length lanes"],
    valid: Int[Array, " batch"] | Bool[Array, "batch length"] | None,
    cotangent: Float[Array, "batch length width"],
    blocks: Blocks,
    *,
    causal: bool,
    interpret: bool,
) -> Float[Array, "batch length lanes"]:
    """The cotangent of `qkv`; the probabilities are computed again.

    Args:
        qkv: as of `forward`, and so the rest.
        valid: likewise.
        cotangent: of its result.
        blocks: likewise.
        causal: likewise.
        interpret: likewise.
    """
    kernel = functools.partial(_backward_kernel, blocks=blocks, causal=causal)
    out = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    return _call("backward", kernel, (qkv, cotangent), valid, out, blocks, interpret)


def _call(
    which: str,
    kernel: Callable[..., None],
    inputs: tuple[jax.Array, ...],
    valid: jax.Array | None,
    out: jax.ShapeDtypeStruct,
    blocks: Blocks,
    interpret: bool,
) -> jax.Array:
    batch, length = out.shape[:2]
    scratch = []
    if which == "backward" and blocks.queries < length:
        scratch = [pltpu.VMEM((length, blocks.head_dim), jnp.float32)] * 2
    prefetched: tuple[jax.Array, ...] = ()
    read = inputs
    body: Callable[..., None] = functools.partial(kernel, None, None)
    if valid is not None and valid.ndim == 1:
        prefetched, body = (valid,), lambda lengths, *refs: kernel(lengths, None, *refs)
    elif valid is not None:
        read = (valid.astype(jnp.float32)[:, None], *inputs)
        body = functools.partial(kernel, None)

    def rows(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((blocks.images, *x.shape[1:]), lambda block, *_: (block, 0, 0))

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(pl.cdiv(batch, blocks.images),),
            in_specs=[rows(x) for x in read],
            out_specs=rows(out),
            scratch_shapes=scratch,
        ),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem_bytes
        ),
        cost_estimate=pl.CostEstimate(
            flops=attention_flops(batch, length, blocks.heads, blocks.head_dim)[which],
            transcendentals=batch * blocks.heads * length**2,
            bytes_accessed=(sum(x.size for x in inputs) + math.prod(out.shape))
            * out.dtype.itemsize,
        ),
        interpret=interpret,
        name=f"short_attention_{which}",
    )(*prefetched, *read)


def _product(left: jax.Array, right: jax.Array, contracted: Any) -> jax.Array:
    return jax.lax.dot_general(left, right, contracted, preferred_element_type=jnp.float32)


def _exponentials(
    keys: jax.Array, queries: jax.Array, first_query: Any, inside: Any, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Of the scores [keys, queries]; the inverse of their sums, and what is not masked."""
    scores = _product(keys, queries, _LAST_LAST)
    valid = None if inside is None else inside(scores.shape)
    if causal:
        key, query = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        before = key <= first_query + query
        valid = before if valid is None else valid & before
    if valid is not None:
        scores = jnp.where(valid, scores, _MASKED)
    scale = queries.shape[-1] ** -0.5
    exponentials = jnp.exp((scores - scores.max(0, keepdims=True)) * scale)
    # Of the sums, not of every probability: a division by row instead of by element.
    return exponentials, 1 / exponentials.sum(0, keepdims=True), valid


def _for_each_group(blocks: Blocks, lengths: Any, mask: Any, body: Callable[..., None]) -> None:
    """Runs `body(image, its keys, lane of the group's first query)` for each.

    Of the keys there is a function that gives which of them are attended to, in the shape of a
    chunk's scores; None for all.

    Heads that fill whole registers together are a loop's body: Mosaic slices registers only at
    offsets that it knows. All others are one group, written out.
    """
    lanes = blocks.heads_a_group * blocks.head_dim
    num_groups = blocks.heads // blocks.heads_a_group
    first_image = pl.program_id(0) * blocks.images

    def image(number: Any, _: Any) -> None:
        inside: Any = None
        if lengths is not None:
            # The last block's images may be fewer.
            num_keys = lengths[jnp.minimum(first_image + number, blocks.batch - 1)]

            def inside(shape: tuple[int, ...]) -> jax.Array:
                return jax.lax.broadcasted_iota(jnp.int32, shape, 0) < num_keys
        elif mask is not None:
            # Eight rows alike: what a register holds is what it turns.
            column = jnp.broadcast_to(mask[number], (8, blocks.length)).T[:, :1]

            def inside(shape: tuple[int, ...]) -> jax.Array:
                return jnp.broadcast_to(column, shape) > 0

        if num_groups == 1:
            body(number, inside, 0)
            return

        def group(place: Any, _: Any) -> None:
            body(number, inside, pl.multiple_of(place * lanes, lanes))

        jax.lax.fori_loop(0, num_groups, group, None)

    jax.lax.fori_loop(0, blocks.images, image, None)


def _views(ref: Any, image: Any, first: Any, blocks: Blocks) -> list[Any]:
    """A group's queries, keys and values, or whichever of them `ref` holds side by side."""
    width, lanes = blocks.heads * blocks.head_dim, blocks.heads_a_group * blocks.head_dim
    parts = range(ref.shape[2] // width)
    return [ref.at[image, :, pl.ds(first + part * width, lanes)] for part in parts]


def _for_each_chunk(blocks: Blocks, body: Callable[[Any, int], None]) -> None:
    """Runs `body(first query, number of queries)` for each."""
    whole, rest = divmod(blocks.length, blocks.queries)
    if whole == 1:
        body(0, blocks.queries)
    elif whole:
        aligned = functools.partial(pl.multiple_of, values=blocks.queries)
        jax.lax.fori_loop(
            0, whole, lambda i, _: body(aligned(i * blocks.queries), blocks.queries), None
        )
    if rest:
        body(whole * blocks.queries, rest)


def heads_of(blocks: Blocks) -> list[slice]:
    """The lanes of each head within its group."""
    dim = blocks.head_dim
    return [slice(head * dim, (head + 1) * dim) for head in range(blocks.heads_a_group)]


def _forward_kernel(
    lengths: Any, mask: Any, qkv: Any, out: Any, *, blocks: Blocks, causal: bool
) -> None:
    def group(image: Any, inside: Any, first: Any) -> None:
        queries, keys, values = _views(qkv, image, first, blocks)
        (outs,) = _views(out, image, first, blocks)
        for lanes in heads_of(blocks):
            k, v = keys[:, lanes], values[:, lanes]

            def chunk(start: Any, size: int, k: Any = k, v: Any = v, lanes: Any = lanes) -> None:
                rows = pl.ds(start, size)
                e, inverse, _ = _exponentials(k, queries[rows, lanes], start, inside, causal)
                mixed = _product(v, e.astype(v.dtype), _FIRST_FIRST) * inverse
                outs[rows, lanes] = mixed.T.astype(outs.dtype)

            _for_each_chunk(blocks, chunk)

    _for_each_group(blocks, lengths, mask, group)


def _backward_kernel(
    lengths: Any,
    mask: Any,
    qkv: Any,
    cotangent: Any,
    d_qkv: Any,
    *sums: Any,
    blocks: Blocks,
    causal: bool,
) -> None:
    scale = blocks.head_dim**-0.5

    def chunk_of(
        k: Any, v: Any, q: Any, d_out: Any, start: Any, inside: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The cotangents of a chunk's queries, and its shares of those of all keys and values."""
        p, inverse, valid = _exponentials(k, q, start, inside, causal)
        d_p = _product(v, d_out, _LAST_LAST)
        mean = (p * d_p).sum(0, keepdims=True) * inverse
        p = p * inverse
        d_scores = p * (d_p - mean) * scale
        if valid is not None:  # a row without keys has even probabilities, and no gradient
            d_scores = jnp.where(valid, d_scores, 0)
        d_scores = d_scores.astype(q.dtype)
        d_q = _product(d_scores, k, _FIRST_FIRST)
        d_k = _product(d_scores, q, _LAST_FIRST)
        return d_q, d_k, _product(p.astype(v.dtype), d_out, _LAST_FIRST)

    def group(image: Any, inside: Any, first: Any) -> None:
        queries, keys, values = _views(qkv, image, first, blocks)
        d_queries, d_keys, d_values = _views(d_qkv, image, first, blocks)
        (d_outs,) = _views(cotangent, image, first, blocks)
        for lanes in heads_of(blocks):
            k, v = keys[:, lanes], values[:, lanes]
            for total in sums:
                total[...] = jnp.zeros_like(total)

            def chunk(start: Any, size: int, k: Any = k, v: Any = v, lanes: Any = lanes) -> None:
                rows = pl.ds(start, size)
                q, d_out = queries[rows, lanes], d_outs[rows, lanes]
                d_q, d_k, d_v = chunk_of(k, v, q, d_out, start, inside)
                d_queries[rows, lanes] = d_q.astype(d_queries.dtype)
                if sums:
                    sums[0][...] += d_k
                    sums[1][...] += d_v
                else:
                    d_keys[:, lanes] = d_k.astype(d_keys.dtype)
                    d_values[:, lanes] = d_v.astype(d_values.dtype)

            _for_each_chunk(blocks, chunk)
            if sums:
                d_keys[:, lanes] = sums[0][...].astype(d_keys.dtype)
                d_values[:, lanes] = sums[1][...].astype(d_values.dtype)

    _for_each_group(blocks, lengths, mask, group)
