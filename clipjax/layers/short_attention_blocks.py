"""How `short_attention` cuts its work: rows of whole images that fit a TPU core's own memory."""

import dataclasses
import math
import re

MIB = 2**20
# Of one core (VMEM); libtpu's compiler refuses a kernel beyond it. The oldest first.
_SMALL_VMEM, _VMEM = 16 * MIB, 64 * MIB
# A block's rows wait in both halves of a double buffer: more images a block only spare the few
# hundred cycles that a block costs, and take memory from what runs before and after.
_ROWS_TARGET, MOST_IMAGES = 6 * MIB, 16
LANES, _SUBLANE_BYTES = 128, 32
# Longer rows are cut, so that one head's scores stay a fraction of the memory and the code short.
WHOLE_ROW = 384
# Queries of a chunk, of which the first is taken that leaves no single one: Mosaic fails at it.
CHUNKS = (256, 240, 224)
# Arrays of a head's scores in float32 that the backward pass holds at once, conversions included.
_LIVE_SCORES = {"forward": 3, "backward": 6}
# Of each head of a group, what the compiler spills beside these: 16 of 88 take 0.7 MiB of a v6e.
_SPILLED = MIB // 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """How one kernel cuts its arrays.

    Attributes:
        batch: images.
        length: tokens of each.
        heads: of an image.
        head_dim: numbers of a head.
        images: of a block; the last block may have fewer.
        queries: of a chunk, a row's scores being made in chunks; the last may have fewer.
        heads_a_group: heads that a loop takes at once, lanes of whole registers; or all.
        vmem_bytes: that the kernel may use of the core's own memory.
    """

    batch: int
    length: int
    heads: int
    head_dim: int
    images: int
    queries: int
    heads_a_group: int
    vmem_bytes: int


def vmem_of(device_kind: str | None) -> int:
    """Bytes of a TPU core's own memory, by `jax.Device.device_kind`; the least for an unknown."""
    older = device_kind is None or re.search(r"TPU v[234]\b", device_kind)
    return _SMALL_VMEM if older else _VMEM


def attention_flops(batch: int, length: int, heads: int, head_dim: int) -> dict[str, int]:
    """FLOPs of the two kernels' matrix products, by kernel; padding is not counted.

    Args:
        batch: images.
        length: tokens of each.
        heads: of an image.
        head_dim: numbers of a head.
    """
    product = 2 * batch * heads * length**2 * head_dim
    # Scores and the values' mixture; both again but for the mixture, and four cotangents.
    return {"forward": 2 * product, "backward": 5 * product}


def make_blocks(
    which: str, batch: int, length: int, heads: int, head_dim: int, itemsize: int, vmem: int
) -> Blocks | None:
    """The blocks of a kernel; None where one image does not fit.

    Args:
        which: forward or backward.
        batch: images.
        length: tokens of each.
        heads: of an image.
        head_dim: numbers of a head.
        itemsize: bytes of a number.
        vmem: bytes of the core's own memory.
    """
    width = heads * head_dim
    sublanes = _SUBLANE_BYTES // itemsize
    row_lanes = round_up(3 * width, LANES) * (2 if which == "backward" else 1) + round_up(
        width, LANES
    )
    image_bytes = round_up(length, sublanes) * row_lanes * itemsize
    queries = length
    if length > WHOLE_ROW:
        queries = next(size for size in CHUNKS if length % size != 1)
    work = _LIVE_SCORES[which] * round_up(length, 8) * round_up(queries, LANES) * 4
    if queries < length:
        work += 2 * round_up(length, 8) * round_up(head_dim, LANES) * 4
    if work + 2 * image_bytes > vmem:
        return None
    images = max(1, min(_ROWS_TARGET // (2 * image_bytes), MOST_IMAGES, batch))
    group = heads_of_whole_lanes(head_dim)
    group = group if heads % group == 0 else heads
    needed = max(_SMALL_VMEM, work + 2 * images * image_bytes)
    return Blocks(
        batch=batch,
        length=length,
        heads=heads,
        head_dim=head_dim,
        # As many blocks, as even as can be.
        images=-(-batch // -(-batch // images)),
        queries=queries,
        heads_a_group=group,
        vmem_bytes=min(vmem, needed + group * _SPILLED),
    )


def heads_of_whole_lanes(head_dim: int) -> int:
    """The fewest heads whose numbers fill the lanes of whole registers."""
    return LANES // math.gcd(head_dim, LANES)


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not below a size."""
    return -(-size // multiple) * multiple
