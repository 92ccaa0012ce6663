"""FLOPs of single products, against counting by hand."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from clipjax import plan
from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, walk
from clipjax.plan.products import valid_pairs


def by_counting(size, window, outputs, stride, pad, dilation, window_dilation):
    count = 0
    for out, place in itertools.product(range(outputs), range(window)):
        spot = out * stride + place * window_dilation - pad
        count += 0 <= spot <= (size - 1) * dilation and spot % dilation == 0
    return count


def test_valid_pairs_equal_counting():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, window, outputs, stride, dilation, window_dilation = (
            int(n) for n in rng.integers(1, 7, 6)
        )
        pad = int(rng.integers(0, 6))
        found = valid_pairs(
            size, window, outputs, stride=stride, pad=pad, dilation=dilation,
            window_dilation=window_dilation,
        )  # fmt: skip
        assert found == by_counting(size, window, outputs, stride, pad, dilation, window_dilation)


def test_a_batch_dimension_written_as_a_dilated_window_counts_once():
    """TPU: a batch of 128 products is one convolution whose windows meet one element each."""
    assert valid_pairs(128, 128, 128, stride=127, pad=0, dilation=128, window_dilation=1) == 128


def test_the_compilers_estimate_of_time_is_used_nowhere():
    """It comes out negative."""
    sources = list(Path(plan.__file__).parent.glob("*.py"))
    assert len(sources) > 10
    assert [s.name for s in sources if "optimal_seconds" in s.read_text(encoding="utf-8")] == []


TPU_PRODUCT = """\
HloModule m

ENTRY %main (a: bf16[128,12,197,64], b: bf16[128,12,197,64]) -> f32[128,12,197,197] {
  %a = bf16[128,12,197,64]{3,2,1,0} parameter(0)
  %b = bf16[128,12,197,64]{3,2,1,0} parameter(1)
  ROOT %scores = f32[128,12,197,197]{3,2,1,0} convolution(%a, %b), window={size=128x12 stride=127x11 lhs_dilate=128x12}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501


def test_attention_scores_as_the_tpu_compiler_writes_them():
    flops = count_flops(walk(parse(TPU_PRODUCT)))
    assert flops.total == 2 * 128 * 12 * 197 * 197 * 64


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_convolution_skips_its_padding(padding):
    images, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 8))

    def convolve(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (2, 2), padding, dimension_numbers=numbers)

    text = jax.jit(convolve).lower(images, kernel).compile().as_text()
    per_axis = {"VALID": 4 * 3, "SAME": 5 * 3 - 2}[padding]
    assert count_flops(walk(parse(text))).total == 2 * 2 * per_axis**2 * 3 * 8
