"""A copy of the state that nobody overwrites, and what is computed from it.

The train step donates its state: the moment the next step starts, the buffers belong to it. Each
save therefore works on a copy, and the copy is all that the loop waits for.
"""

import dataclasses
import functools
import math
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.checkpoint.manifest import LeafRecord, digest_array
from clipjax.trees import flatten_with_names

# Leaves that must be finite: all that evaluation and fine-tuning read. Optimizer states may hold
# an infinity on purpose (the best loss so far, before there is one).
FINITE_ROOTS = ("params", "ema_params", "averages")
_ALIGNMENT = 64  # bytes, of XLA's arrays on a CPU


class NonFiniteStateError(RuntimeError):
    """The parameters hold NaN or infinity, so they are not saved."""


Index = tuple[slice, ...]


class Block(NamedTuple):
    """A part of a leaf that this process is to hash; most leaves are in one block.

    Attributes:
        leaf: its number in the state.
        number: of the block among those of the leaf, in C order of their grid.
        pieces: where in the block they lie, and their values on this host.
    """

    leaf: int
    number: int
    pieces: list[tuple[Index, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A state that stays as it is.

    Attributes:
        state: the tree to hand to Orbax.
        is_copy: whether all of it is memory of its own; else it is the state itself, which the next
            step may take.
        records: all leaves, not hashed yet.
        blocks: what this process is to hash.
    """

    state: Any
    is_copy: bool
    records: tuple[LeafRecord, ...]
    blocks: list[Block]


class HostMemory:
    """Memory for copies of a state on CPU devices, kept from one save to the next.

    The first write to fresh memory costs several times what the copy does.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], np.ndarray] = {}

    def copy(self, state: Any) -> Any:
        """Copies a tree of jax.Arrays of CPU devices; it holds until the next copy is made."""
        leaves, tree = jax.tree.leaves(state), jax.tree.structure(state)
        work = {}
        for number, leaf in enumerate(leaves):
            for shard in leaf.addressable_shards:
                work[number, str(shard.index)] = shard.data  # replicas share one copy
        keys = sorted(work, key=lambda key: -work[key].nbytes)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            list(pool.map(lambda key: self._copy_block(key, work[key]), keys))

        def copied(number: int, leaf: jax.Array) -> jax.Array:
            # JAX takes aligned memory of the host for an array's own on a CPU, without a copy.
            parts = [
                jax.device_put(self._kept[number, str(shard.index)], shard.data.sharding)
                for shard in leaf.addressable_shards
            ]
            return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

        copies = [copied(number, leaf) for number, leaf in enumerate(leaves)]
        return jax.tree.unflatten(tree, copies)

    def _copy_block(self, key: tuple[int, str], data: jax.Array) -> None:
        source = np.asarray(data)
        kept = self._kept.get(key)
        if kept is None or kept.shape != source.shape or kept.dtype != source.dtype:
            kept = self._kept[key] = _aligned(source.shape, source.dtype)
        kept.reshape(-1).view(np.uint8)[:] = _bytes(source)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


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


def take_snapshot(state: Any, memory: HostMemory) -> Snapshot:
    """Copies a state, and shares out what is to be hashed among the processes."""
    if jax.process_count() == 1:
        # One replica is all that is written, and Orbax would cut each of several to pieces.
        state = jax.tree.map(
            lambda x: x.addressable_shards[0].data if x.is_fully_replicated else x, state
        )
    # Host views of CPU arrays share their memory, so there Orbax too must work on a copy.
    # Elsewhere it copies to the host before its save returns. The copies made here stay with the
    # shards, so that it finds them and each byte crosses the bus once.
    leaves = jax.tree.leaves(state)
    is_copy = all(device.platform == "cpu" for leaf in leaves for device in leaf.devices())
    if is_copy:
        state = memory.copy(state)
    records, mine, loads = [], [], [0] * jax.process_count()
    for number, (name, leaf) in enumerate(flatten_with_names(state)):
        starts = _owners(leaf.sharding, leaf.shape)
        is_whole = leaf.is_fully_addressable or len(starts) == 1
        block_shape = () if is_whole else leaf.sharding.shard_shape(leaf.shape)
        records.append(LeafRecord(name, leaf.shape, leaf.dtype.name, None, block_shape))
        shards = {_start(shard.index): shard for shard in leaf.addressable_shards[::-1]}
        if leaf.is_fully_addressable:
            mine.append((number, 0, list(shards.values())))
            continue
        for place, (start, processes) in enumerate(starts.items()):
            owner = min(processes, key=lambda process: (loads[process], process))
            loads[owner] += leaf.nbytes // len(starts)
            if owner == jax.process_index():
                mine.append((number, place, [shards[start]]))
    written = [s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards]
    written = [shard for shard in written if shard.replica_id == 0]
    for shard in written + [shard for _, _, shards in mine for shard in shards]:
        shard.data.copy_to_host_async()  # once, if it is asked for twice
    blocks = [
        Block(leaf, place, [(shard.index, np.asarray(shard.data)) for shard in shards])
        for leaf, place, shards in mine
    ]
    return Snapshot(state, is_copy, tuple(records), blocks)


@functools.lru_cache(maxsize=4096)
def _owners(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> dict[tuple[int, ...], list[int]]:
    """Where the blocks of an array begin, in C order, and the processes that hold each."""
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    device: Any
    for device, index in sharding.devices_indices_map(shape).items():
        found[_start(index)].add(device.process_index)
    return {start: sorted(found[start]) for start in sorted(found)}


def _start(index: Index) -> tuple[int, ...]:
    return tuple(part.start or 0 for part in index)


def hash_blocks(snapshot: Snapshot) -> list[tuple[int, int, str]]:
    """Hashes the blocks that are this process's: (leaf, number of the block, SHA-256)."""
    found = []
    for leaf, number, pieces in snapshot.blocks:
        value = pieces[0][1]
        if len(pieces) > 1:
            record = snapshot.records[leaf]
            value = np.empty(record.shape, value.dtype)
            for index, piece in pieces:
                value[index] = piece
        found.append((leaf, number, digest_array(value)))
    return found


def record_leaves(
    snapshot: Snapshot, digests: list[tuple[int, int, str]]
) -> tuple[LeafRecord, ...]:
    """Puts the digests of all processes into the records of the leaves.

    Raises:
        ValueError: the processes have not hashed each block once.
    """
    of_leaf: dict[int, dict[int, str]] = defaultdict(dict)
    for leaf, number, digest in digests:
        of_leaf[leaf][number] = digest
    records = []
    for leaf, record in enumerate(snapshot.records):
        found = of_leaf[leaf]
        count = len(record.grid())
        if sorted(found) != list(range(count)):
            raise ValueError(
                f"{record.name} has {count} blocks, and the processes hashed {sorted(found)}"
            )
        if record.block_shape:
            blocks = tuple(found[number] for number in range(count))
            records.append(dataclasses.replace(record, blocks=blocks))
        else:
            records.append(dataclasses.replace(record, sha256=found[0]))
    return tuple(records)


def host_value(leaf: jax.Array, index: Index = ()) -> np.ndarray | None:
    """A part of an array, or all of it, on this host; None if this process does not hold it all."""
    if leaf.is_fully_replicated:
        return np.asarray(jax.device_get(leaf.addressable_shards[0].data))[index]
    for shard in leaf.addressable_shards if index else ():
        inside = _inside(index, shard.index, shard.data.shape)
        if inside is not None:
            return np.asarray(jax.device_get(shard.data))[inside]
    if not leaf.is_fully_addressable:
        return None
    value = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            value[shard.index] = jax.device_get(shard.data)
    return value[index]


def _inside(index: Index, outer: Index, shape: tuple[int, ...]) -> Index | None:
    """Where an index lies in a shard of that index and shape; None if it is not all in it."""
    inside = []
    for part, shard, size in zip(index, outer, shape, strict=True):
        start = shard.start or 0
        if part.start < start or part.stop > start + size:
            return None
        inside.append(slice(part.start - start, part.stop - start))
    return tuple(inside)


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def check_finite(state: Any, step: int) -> None:
    """Refuses a state whose parameters are not finite; the answer is the same in every process.

    Raises:
        NonFiniteStateError: names the leaves.
    """
    groups: dict[Any, dict[str, jax.Array]] = defaultdict(dict)  # a snapshot's lie apart
    for name, leaf in flatten_with_names(state):
        if name.split("/")[0] in FINITE_ROOTS and jnp.issubdtype(leaf.dtype, jnp.inexact):
            groups[frozenset(leaf.devices())][name] = leaf
    finite: dict[str, bool] = {}
    for group in groups.values():
        finite |= zip(group, jax.device_get(_finite(list(group.values()))), strict=True)
    bad = [name for name, ok in finite.items() if not ok]
    if bad:
        raise NonFiniteStateError(
            f"step {step} is not saved: {len(bad)} of {len(finite)} parameter arrays hold NaN or "
            f"infinity, the first is {bad[0]}; the newest checkpoint before it is intact: lower "
            "the learning rate or look at the data, and start again"
        )
