"""The estimate of the attention kernel's own time, against what libtpu's compiler scheduled."""

import pytest

from clipjax.layers.short_attention import attention_flops
from clipjax.plan.attention_time import attention_time
from clipjax.plan.chips import CHIPS

ROW = {"length": 197, "heads": 12, "head_dim": 64}
# Cycles of the loop over two heads in the kernel for a v5e (benchmarks/results/): an image of
# ViT-B/16 runs it six times. 1.5 GHz.
SCHEDULED = {"forward": 980, "backward": 1700}


@pytest.mark.parametrize("which", SCHEDULED)
def test_the_estimate_is_near_what_was_scheduled(which):
    found = attention_time(CHIPS["v5e"], which, batch=128, **ROW)
    scheduled = 128 * 6 * SCHEDULED[which] / 1.5e9
    assert 0.5 < found.total_s / scheduled < 1
    with pytest.raises(AssertionError):  # half of the heads
        half = attention_time(CHIPS["v5e"], which, batch=128, **{**ROW, "heads": 6})
        assert 0.5 < half.total_s / scheduled < 1


def test_padding_to_whole_tiles_is_counted():
    exact = attention_flops(1, 256, 1, 128)["forward"]
    found = attention_time(CHIPS["v5e"], "forward", batch=1, length=256, heads=1, head_dim=128)
    assert found.padded_flops == exact
    for length, head_dim in ((249, 72), (256, 65)):
        same = attention_time(
            CHIPS["v5e"], "forward", batch=1, length=length, heads=1, head_dim=head_dim
        )
        assert same.padded_flops == exact
    wider = attention_time(CHIPS["v6e"], "forward", batch=1, length=256, heads=1, head_dim=128)
    assert wider.padded_flops == 2 * exact
    assert wider.vector_s is None


def test_a_gpu_has_no_such_units():
    with pytest.raises(ValueError, match="h100 is no TPU"):
        attention_time(CHIPS["h100"], "forward", batch=1, **ROW)
