"""Softmax attention, by the implementation that the devices and the shapes ask for.

What is masked is said as `is_causal` and as lengths or a mask of the keys, never as a square: a
kernel then leaves out what it need not compute, and keeps no mask of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Bool, Float, Int
from clipjax.layers import short_attention as short
from clipjax.layers.execution import ATTENTIONS, PLAIN, Execution
from clipjax.layers.remat import MIXED, QKV, checkpoint_name

# cuDNN's training kernels take lengths that are multiples of this.
_CUDNN_LENGTHS = 8
_LEAST_CAPABILITY = 8.0  # of an NVIDIA GPU, for cuDNN's attention
_FIRST_CHOICE = {"gpu": "cudnn", "tpu": "pallas"}


def attend(
    qkv: Float[Array, "batch length parts heads head_dim"],
    valid: Int[Array, " batch"] | Bool[Array, "batch length"] | None = None,
    *,
    query: Float[Array, "batch queries heads head_dim"] | None = None,
    is_causal: bool = False,
    execution: Execution = PLAIN,
) -> Float[Array, "batch queries heads head_dim"]:
    """`softmax(q k^T / sqrt(head_dim)) v` of each head, softmax in float32 (arXiv:1706.03762).

    Args:
        qkv: queries, keys and values of one projection, in this order; keys and values alone where
            `query` is given.
        valid: the keys that are attended to, where not all are: their number from the first, int32,
            or True for each of them. Rows of queries beyond them mean nothing.
        query: queries that are not the keys' own. There are few, so this always takes XLA.
        is_causal: key j is attended to by the queries from j on.
        execution: its `platform` and `attention`. `xla` is `jax.nn.dot_product_attention`; `cudnn`
            and `pallas` are kernels that keep no scores, for GPUs and for TPUs, and `auto` takes
            the platform's where it can.

    Raises:
        ValueError: the implementation that was asked for cannot do this.
    """
    if query is not None:
        return _by_xla(query, qkv[:, :, 0], qkv[:, :, 1], valid, is_causal=is_causal)
    implementation = choose(qkv, valid, execution=execution)
    if implementation == "cudnn":
        return _by_cudnn(qkv, valid, is_causal=is_causal)
    qkv = checkpoint_name(qkv, QKV)
    if implementation == "pallas":
        mixed = short.short_attention(qkv, valid, causal=is_causal)
    else:
        mixed = _by_xla(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], valid, is_causal=is_causal)
    return checkpoint_name(mixed, MIXED)


def attention_on(device: Any, platform: str, asked: str) -> str:
    """What towers are given as `Execution.attention`, of what was asked for.

    Args:
        device: one of the computation's, which may be absent (a plan).
        platform: that `clipjax.platforms.platform_of` gives it.
        asked: of ATTENTIONS. Only `auto` changes, to `xla` on GPUs that the kernel is not for.
    """
    if asked == "auto" and platform == "gpu" and not _has_cudnn_attention(device):
        return "xla"
    return asked


def choose(qkv: Any, valid: Any = None, *, execution: Execution) -> str:
    """The implementation that attends to such arrays: xla, cudnn or pallas.

    Args:
        qkv, valid: as for `attend`; shapes and dtypes are enough.
        execution: likewise.

    Raises:
        ValueError: the one that was asked for cannot.
    """
    asked = execution.attention
    if asked not in ATTENTIONS:
        raise ValueError(f"attention = {asked!r} is unknown; allowed are {', '.join(ATTENTIONS)}")
    if asked == "auto":
        first = _FIRST_CHOICE.get(execution.platform, "xla")
        return (
            first if unsupported(first, qkv, valid, platform=execution.platform) is None else "xla"
        )
    reason = unsupported(asked, qkv, valid, platform=execution.platform)
    if reason is not None:
        raise ValueError(f"attention = {asked!r}: {reason}; 'auto' takes what there is")
    return asked


def unsupported(implementation: str, qkv: Any, valid: Any = None, *, platform: str) -> str | None:
    """Why an implementation cannot attend to such arrays; None if it can."""
    if implementation == "xla":
        return None
    if implementation == "pallas":
        return short.unsupported(qkv.shape, qkv.dtype, platform)
    if platform != "gpu":
        return f"cuDNN runs on GPUs, and the devices are of the platform {platform!r}"
    if qkv.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 or float16, not in {qkv.dtype}"
    head_dim = qkv.shape[-1]
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN takes heads of a multiple of 8, up to 128; these have {head_dim}"
    return None


def _by_xla(query: Any, key: Any, value: Any, valid: Any, *, is_causal: bool) -> jax.Array:
    return jax.nn.dot_product_attention(
        query, key, value, mask=_over_queries(valid, query, key), is_causal=is_causal
    )


def _by_cudnn(qkv: Any, valid: Any, *, is_causal: bool) -> jax.Array:
    batch, length = qkv.shape[:2]
    pad = -length % _CUDNN_LENGTHS
    qkv = jnp.pad(qkv, ((0, 0), (0, pad), (0, 0), (0, 0), (0, 0)))
    # As the kernel takes them: what is kept is not padded and cut again. Of the output see `REMAT`.
    query, key, value = (checkpoint_name(qkv[:, :, part], QKV) for part in range(3))
    mask = lengths = None
    if valid is None:
        # No query of a causal mask sees the padding behind it.
        lengths = jnp.full((batch,), length, jnp.int32) if pad and not is_causal else None
    elif valid.ndim == 1:
        lengths = valid.astype(jnp.int32)
    else:  # the kernel knows no mask of keys by themselves
        mask = _over_queries(jnp.pad(valid, ((0, 0), (0, pad))), query, key)
    # JAX's rule for the sharding of this call leaves these out: each device takes the rows it has.
    if lengths is not None:
        lengths = nn.with_logical_constraint(lengths, ("batch",))
    if mask is not None:
        mask = nn.with_logical_constraint(mask, ("batch", None, None, None))
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed[:, :length]


def _over_queries(valid: Any, query: Any, key: Any) -> jax.Array | None:
    """The keys that are attended to as [batch, 1, queries, keys]."""
    if valid is None:
        return None
    if valid.ndim == 1:
        valid = jnp.arange(key.shape[1]) < valid[:, None]
    # Not len(query): the batch may be symbolic (jax.export).
    shape = (query.shape[0], 1, query.shape[1], key.shape[1])
    return jnp.broadcast_to(valid[:, None, None], shape)


def _has_cudnn_attention(device: Any) -> bool:
    """Whether a GPU is NVIDIA's, of the generation that the kernels are for."""
    capability = getattr(device, "compute_capability", None)
    try:
        return capability is None or float(capability) >= _LEAST_CAPABILITY
    except ValueError:  # AMD's have names
        return False
