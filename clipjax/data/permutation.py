"""A seeded order for every epoch, computed index by index: O(1) memory for 10^10 examples."""

import hashlib

import numpy as np

# Part of a loader's fingerprint: another value would give other batches to a resumed run.
VERSION = 1
NUM_ROUNDS = 6
MAX_EXAMPLES = 1 << 60


def permute(index: np.ndarray | int, n: int, key: int | tuple[int, ...]) -> np.ndarray:
    """Maps indices to their places in a pseudorandom permutation of `0..n-1`.

    A Feistel network permutes the next power of four above `n`; a value that falls outside
    `0..n-1` is permuted again until it falls inside (cycle walking), which keeps the map one to
    one and takes less than four rounds on average.

    Args:
        index: `[...]` integers in `0..n-1`.
        key: which permutation; integers, e.g. `(seed, epoch)`.

    Returns:
        `[...]` int64.

    Raises:
        ValueError: if `n` or an index is out of range.

    Reference: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    if not 1 <= n <= MAX_EXAMPLES:
        raise ValueError(f"n is {n}, expected 1..2^60")
    values = np.asarray(index, np.int64)
    if values.size and (values.min() < 0 or values.max() >= n):
        raise ValueError(f"indices {values.min()}..{values.max()} are outside 0..{n - 1}")
    half_bits = max(1, (int(n - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    out = values.astype(np.uint64).reshape(-1)
    pending = np.arange(out.size)
    while pending.size:
        out[pending] = _feistel(out[pending], half_bits, keys)
        pending = pending[out[pending] >= n]
    return out.astype(np.int64).reshape(values.shape)


def example_index(position: np.ndarray | int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds which example stands at a position of the endless training stream.

    Position `p` belongs to epoch `p // n`; every epoch visits each of the `n` examples once, in
    an order of its own.

    Returns:
        `(epoch, index)`, both `[...]` int64.

    Raises:
        ValueError: if a position is negative or `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"n is {n}: there is nothing to draw from")
    positions = np.asarray(position, np.int64)
    if positions.size and positions.min() < 0:
        raise ValueError(f"position {positions.min()} is negative")
    epochs, places = np.divmod(positions, n)
    index = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        index[chosen] = permute(places[chosen], n, (seed, int(epoch)))
    return epochs, index


def _round_keys(key: int | tuple[int, ...]) -> np.ndarray:
    """Derives round keys by SHA-512, the same in every process, library and Python version."""
    numbers = key if isinstance(key, tuple) else (key,)
    text = f"clipjax.permutation/{VERSION}/" + ",".join(str(int(k)) for k in numbers)
    return np.frombuffer(hashlib.sha512(text.encode()).digest(), "<u8")[:NUM_ROUNDS]


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit; wraps at 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
