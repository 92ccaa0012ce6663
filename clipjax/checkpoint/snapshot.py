"""A copy of the state that nobody overwrites, and what is computed from it.

The train step donates its state: the moment the next step starts, the buffers belong to it. Each
save therefore works on a copy, and the copy is all that the loop waits for.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.checkpoint.manifest import LeafRecord, digest_array
from clipjax.trees import flatten_with_names

# Leaves that must be finite: all that evaluation and fine-tuning read. Optimizer states may hold
# an infinity on purpose (the best loss so far, before there is one).
FINITE_ROOTS = ("params", "ema_params")


class NonFiniteStateError(RuntimeError):
    """The parameters hold NaN or infinity, so they are not saved."""


# A leaf, not hashed yet, and its value on this host; None if other hosts hold parts of it.
HostLeaf = tuple[LeafRecord, np.ndarray | None]


def check_arrays(state: Any) -> None:
    """Checks that a state can be saved.

    Raises:
        ValueError: a leaf is not a jax.Array of plain numbers.
    """
    for name, leaf in flatten_with_names(state):
        if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            raise ValueError(
                f"state leaf {name} is {type(leaf).__name__} of "
                f"{getattr(leaf, 'dtype', 'no dtype')}; a checkpoint holds jax.Arrays of numbers "
                "(store jax.random.key_data of a key)"
            )


def take_snapshot(state: Any) -> tuple[Any, list[HostLeaf]]:
    """Copies a state.

    Returns:
        The tree to hand to Orbax, and this host's leaves to hash.
    """
    if jax.process_count() == 1:
        # One replica is all that is written, and Orbax would cut each of several to pieces.
        state = jax.tree.map(
            lambda x: x.addressable_shards[0].data if x.is_fully_replicated else x, state
        )
    # Host views of CPU arrays share their memory, so there Orbax too must work on a copy.
    # Elsewhere it copies to the host before its save returns. The copies made here stay with the
    # shards, so that it finds them and each byte crosses the bus once.

    def copied(leaf: jax.Array) -> jax.Array:
        on_cpu = all(device.platform == "cpu" for device in leaf.devices())
        return jax.device_put(leaf, leaf.sharding, may_alias=False) if on_cpu else leaf

    state = jax.tree.map(copied, state)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                shard.data.copy_to_host_async()
    return state, [
        (LeafRecord(name, leaf.shape, leaf.dtype.name, None), host_value(leaf))
        for name, leaf in flatten_with_names(state)
    ]


def host_value(leaf: jax.Array) -> np.ndarray | None:
    """The whole array on this host, or None if other hosts hold parts of it."""
    if leaf.is_fully_replicated:
        return np.asarray(jax.device_get(leaf.addressable_shards[0].data))
    if not leaf.is_fully_addressable:
        return None
    value = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            value[shard.index] = jax.device_get(shard.data)
    return value


def record_leaves(leaves: list[HostLeaf]) -> tuple[LeafRecord, ...]:
    """Hashes the leaves of a snapshot."""
    return tuple(
        leaf if value is None else dataclasses.replace(leaf, sha256=digest_array(value))
        for leaf, value in leaves
    )


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def check_finite(state: Any, step: int) -> None:
    """Refuses a state whose parameters are not finite; the answer is the same in every process.

    Raises:
        NonFiniteStateError: names the leaves.
    """
    names, leaves = [], []
    for name, leaf in flatten_with_names(state):
        if name.split("/")[0] in FINITE_ROOTS and jnp.issubdtype(leaf.dtype, jnp.inexact):
            names.append(name)
            leaves.append(leaf)
    if not names:
        return
    finite = jax.device_get(_finite(leaves))
    bad = [name for name, ok in zip(names, finite, strict=True) if not ok]
    if bad:
        raise NonFiniteStateError(
            f"step {step} is not saved: {len(bad)} of {len(names)} parameter arrays hold NaN or "
            f"infinity, the first is {bad[0]}; the newest checkpoint before it is intact: lower "
            "the learning rate or look at the data, and start again"
        )
