"""The estimate of the attention kernel's own time, against what libtpu's compiler scheduled."""

import pytest

from clipjax.layers.short_attention import attention_flops
from clipjax.plan.attention_time import attention_time, attention_times
from clipjax.plan.chips import CHIPS
from clipjax.plan.hlo import parse, walk

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


# As libtpu writes the calls of one block of ViT-B/16's image tower, 128 images; bodies cut.
CALLS = """\
HloModule m

ENTRY %main (qkv: bf16[128,197,2304], g: bf16[128,197,768]) -> bf16[128,197,2304] {
  %qkv = bf16[128,197,2304]{2,1,0} parameter(0)
  %g = bf16[128,197,768]{2,1,0} parameter(1)
  %f = bf16[128,197,768]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%qkv), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(CLIP)/blocks/attention/shard_map/cond/branch_0_fun/short_attention_forward/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"15260319744","transcendentals":"59610624","bytes_accessed":"154927104"}}}
  ROOT %b = bf16[128,197,2304]{2,1,0:T(8,128)(2,1)} custom-call(%qkv, %g), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp(CLIP))/blocks/attention/shard_map/cond/branch_0_fun/short_attention_backward/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"38150799360","transcendentals":"59610624","bytes_accessed":"271122432"}}}
}
"""  # noqa: E501


def test_calls_of_a_program_are_estimated_by_their_shapes():
    visits = list(walk(parse(CALLS)))
    expected = {
        which: (1, attention_time(CHIPS["v5e"], which, batch=128, **ROW).total_s)
        for which in ("forward", "backward")
    }
    assert attention_times(CHIPS["v5e"], visits) == expected
    assert attention_times(CHIPS["h100"], visits) == {}
    others = list(walk(parse(CALLS.replace("short_attention", "another"))))
    assert attention_times(CHIPS["v5e"], others) == {}
