"""Self-attention of short sequences on TPUs, straight from the fused projection of q, k and v.

JAX's flash attention for TPUs wants heads in front of tokens and rows of 128, for which a row of
197 tokens is transposed and padded in memory. Here whole rows of a few images are in the core's own
memory at once: scores never leave it, heads are neither transposed nor padded, and the backward
pass computes the probabilities again (arXiv:2205.14135) without an online softmax, for it sees
whole rows.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

from clipjax.array_types import Array, Bool, Float, Int
from clipjax.layers.shards import free_axes, on_each_device, spec_in_force
from clipjax.layers.short_attention_blocks import (
    LANES,
    attention_flops,
    heads_of_whole_lanes,
    make_blocks,
    vmem_of,
)

__all__ = ["attention_flops", "short_attention", "unsupported"]

_DTYPES = ("float32", "bfloat16")


def short_attention(
    qkv: Float[Array, "batch length parts heads head_dim"],
    valid: Int[Array, " batch"] | Bool[Array, "batch length"] | None = None,
    *,
    causal: bool = False,
    interpret: bool | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """Multi-head self-attention; softmax in float32 (arXiv:1706.03762).

    Under a mesh each device attends with the examples and heads that the sharding rules give it.

    Args:
        qkv: queries, keys and values, in this order, of one projection; float32 or bfloat16.
        valid: the keys that are attended to, where not all are: their number from the first, or
            True for each of them. Rows of queries beyond them mean nothing.
        causal: whether a query sees no later key.
        interpret: run the kernel as plain JAX, as a test does; None: wherever this is no TPU.

    Raises:
        ValueError: a shape or dtype that the kernel is not for.
    """
    interpreted = _device_kind() is None if interpret is None else interpret
    reason = unsupported(qkv.shape, qkv.dtype, "tpu", interpret=interpreted)
    if reason is not None:
        raise ValueError(f"short_attention: {reason}")
    if valid is not None and valid.ndim == 1:
        valid = valid.astype(jnp.int32)
    return _attention(qkv, valid, causal, interpret)


def unsupported(
    qkv_shape: tuple[int, ...],
    dtype: Any,
    platform: str,
    device_kind: str | None = None,
    *,
    interpret: bool = False,
) -> str | None:
    """Why a shape is not for the kernel, or None.

    Under a mesh it is asked of the heads that a device has by the sharding rules.

    Args:
        qkv_shape: [batch, length, 3, heads, head_dim].
        dtype: of qkv.
        platform: of the devices; the kernel is for "tpu".
        device_kind: as `jax.Device.device_kind`; None: of the devices in force.
        interpret: the kernel is not compiled, so any number of heads will do.
    """
    if platform != "tpu":
        return f"the kernel for short sequences is for TPUs, not for {platform}"
    if len(qkv_shape) != 5 or qkv_shape[2] != 3 or not all(isinstance(n, int) for n in qkv_shape):
        return f"qkv is {qkv_shape}, expected [batch, length, 3, heads, head_dim]"
    if 0 in qkv_shape:
        return f"qkv is {qkv_shape}: there is nothing to attend to"
    name = jnp.dtype(dtype).name
    if name not in _DTYPES:
        return f"the dtype is {name}; the kernel takes {' and '.join(_DTYPES)}"
    device_kind = _device_kind() if device_kind is None else device_kind
    _, length, _, heads, head_dim = qkv_shape
    here, together = heads // _head_shards(qkv_shape), heads_of_whole_lanes(head_dim)
    if here % together and not interpret:
        return (
            f"a device has {here} heads of {head_dim}, and the kernel takes them by {together}, "
            f"whose numbers fill {together * head_dim // LANES} x {LANES} lanes"
        )
    if _blocks("backward", qkv_shape, dtype, device_kind) is None:
        return (
            f"rows of {length} tokens and {heads} heads of {head_dim} in {name} do not fit the "
            f"{vmem_of(device_kind) >> 20} MiB that a core of {device_kind or 'an unknown TPU'} has"
        )
    return None


def _device_kind(mesh: AbstractMesh | None = None) -> str | None:
    """Of the mesh that a program is traced under, else of the devices at hand; None: no TPU."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        device: Any = jax.local_devices()[0]
    else:
        device = mesh.abstract_device
    return device.device_kind if device is not None and device.platform == "tpu" else None


def _blocks(which: str, qkv_shape: tuple[int, ...], dtype: Any, device_kind: str | None) -> Any:
    batch, length, _, heads, head_dim = qkv_shape
    itemsize = jnp.dtype(dtype).itemsize
    return make_blocks(which, batch, length, heads, head_dim, itemsize, vmem_of(device_kind))


# The rule of differentiation stands outside of `on_each_device`, which says why.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attention(
    qkv: jax.Array, valid: jax.Array | None, causal: bool, interpret: bool | None
) -> jax.Array:
    return _attention_fwd(qkv, valid, causal, interpret)[0]


def _attention_fwd(
    qkv: jax.Array, valid: jax.Array | None, causal: bool, interpret: bool | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
    from clipjax.layers.short_attention_kernels import forward

    def local(qkv: jax.Array, valid: jax.Array | None, *, interpret: bool) -> jax.Array:
        batch, length, _, heads, head_dim = qkv.shape
        blocks = _blocks("forward", qkv.shape, qkv.dtype, device_kind)
        lanes = qkv.reshape(batch, length, -1)
        out = forward(lanes, valid, blocks, causal=causal, interpret=interpret)
        return out.reshape(batch, length, heads, head_dim)

    device_kind = _device_kind()
    out = _with_own_rows(_on_platform(local, interpret), (qkv, valid), out_rank=4)
    return out, (qkv, valid)


def _attention_bwd(
    causal: bool,
    interpret: bool | None,
    residuals: tuple[jax.Array, jax.Array | None],
    cotangent: jax.Array,
) -> tuple[jax.Array, None]:
    from clipjax.layers.short_attention_kernels import backward

    def local(
        qkv: jax.Array, valid: jax.Array | None, cotangent: jax.Array, *, interpret: bool
    ) -> jax.Array:
        batch, length, *_ = qkv.shape
        blocks = _blocks("backward", qkv.shape, qkv.dtype, device_kind)
        lanes, cotangent = (x.reshape(batch, length, -1) for x in (qkv, cotangent))
        out = backward(lanes, valid, cotangent, blocks, causal=causal, interpret=interpret)
        return out.reshape(qkv.shape)

    qkv, valid = residuals
    device_kind = _device_kind()
    args = (qkv, valid, cotangent)
    return _with_own_rows(_on_platform(local, interpret), args, out_rank=5), None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _on_platform(function: Callable[..., Any], interpret: bool | None) -> Callable[..., Any]:
    if interpret is not None:
        return functools.partial(function, interpret=interpret)
    # Known when the program is lowered, which may be for devices that are not here.
    compiled, interpreted = (functools.partial(function, interpret=i) for i in (False, True))
    return lambda *args: jax.lax.platform_dependent(*args, tpu=compiled, default=interpreted)


def _with_own_rows(function: Callable[..., Any], args: tuple[Any, ...], *, out_rank: int) -> Any:
    """Runs a function of a device's own examples and heads.

    Args:
        function: of `args`.
        args: qkv, and what has its batch and heads; None is passed on.
        out_rank: dimensions of the result, [batch, length, heads, head_dim] or those of qkv.
    """

    def specs_of(free: Mapping[str, int]) -> tuple[tuple[Any, ...], PartitionSpec]:
        batch, heads = _cut_axes(args[0].shape, free)
        by_rank = {
            1: PartitionSpec(batch),
            2: PartitionSpec(batch, None),
            4: PartitionSpec(batch, None, heads, None),
            5: PartitionSpec(batch, None, None, heads, None),
        }
        return tuple(None if x is None else by_rank[x.ndim] for x in args), by_rank[out_rank]

    return on_each_device(function, args, specs_of)


def _cut_axes(qkv_shape: tuple[int, ...], free: Mapping[str, int]) -> tuple[Any, Any]:
    """Along which mesh axes the rules in force cut examples and heads."""
    spec = spec_in_force(("batch", None, None, "heads", None), qkv_shape, free)
    batch, _, _, heads, _ = (*spec, *[None] * 5)[:5]
    return batch, heads


def _head_shards(qkv_shape: tuple[int, ...]) -> int:
    """Among how many devices the rules in force cut the heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    free = free_axes(mesh)
    axes = _cut_axes(qkv_shape, free)[1]
    return math.prod(free[axis] for axis in ([] if axes is None else np.atleast_1d(axes)))
