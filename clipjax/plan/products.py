"""FLOPs of single matrix products and convolutions of a compiled program, two per multiply-add."""

import functools
import math
import re
from collections.abc import Sequence

from clipjax.plan.hlo import Computation, Instruction, matched


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of one dot or convolution."""
    left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims") or "")
        return 2.0 * instruction.shapes[0].size * math.prod(left.dims[int(d)] for d in contracted)
    return convolution_flops(instruction, left.dims, right.dims, instruction.shapes[0].dims)


def convolution_flops(
    instruction: Instruction, left: Sequence[int], right: Sequence[int], out: Sequence[int]
) -> float:
    """FLOPs of a convolution, products with padding not counted.

    The TPU compiler writes every matrix product as a convolution: a batch dimension becomes a
    spatial one whose window meets one valid place.

    Args:
        instruction: holds the window and the labels of the dimensions.
        left: sizes of the images.
        right: sizes of the kernel.
        out: sizes of the result.
    """
    labels = matched(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    left_labels, right_labels, out_labels = labels.groups()
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    window = dict(re.findall(r"(\w+)=(\S+)", (instruction.attribute("window") or "{}")[1:-1]))
    num_spatial = len(out) - 2
    pairs = 1
    for axis in range(num_spatial):
        label = str(axis)
        pairs *= valid_pairs(
            left[left_labels.index(label)],
            right[right_labels.index(label)],
            out[out_labels.index(label)],
            stride=_of_axis(window, "stride", axis, 1),
            pad=_of_axis(window, "pad", axis, 0),
            dilation=_of_axis(window, "lhs_dilate", axis, 1),
            window_dilation=_of_axis(window, "rhs_dilate", axis, 1),
        )
    features_in = right[right_labels.index("i")]
    features_out = right[right_labels.index("o")]

    batch = left[left_labels.index("b")] // batch_groups
    return 2.0 * batch * features_in * features_out * pairs


def _of_axis(window: dict[str, str], key: str, axis: int, default: int) -> int:
    return int(window[key].split("x")[axis].split("_")[0]) if key in window else default


@functools.lru_cache(maxsize=4096)
def valid_pairs(
    size: int,
    window: int,
    outputs: int,
    *,
    stride: int,
    pad: int,
    dilation: int,
    window_dilation: int,
) -> int:
    """Pairs of (output place, window place) that meet an element, not padding or a dilation's gap.

    Args:
        size: of the input along this dimension.
        window: places of the kernel.
        outputs: places of the result.
        stride: of the window.
        pad: zeros in front of the input.
        dilation: distance between elements of the input, after dilation.
        window_dilation: distance between places of the window.
    """
    extent = (size - 1) * dilation + 1
    divisor = math.gcd(stride, dilation)
    period = dilation // divisor
    inverse = pow(stride // divisor, -1, period)
    total = 0
    for place in range(window):
        offset = place * window_dilation - pad
        # Output o meets element (o stride + offset) / dilation; 0 <= o stride + offset < extent.
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (extent - 1 - offset) // stride)
        if last < first:
            continue
        # The first such o of the range; from there, one in every period.
        shift = first * stride + offset
        if shift % divisor:
            continue
        start = first + (-shift // divisor) * inverse % period
        if start <= last:
            total += (last - start) // period + 1
    return total
