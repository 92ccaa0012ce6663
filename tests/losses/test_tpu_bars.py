"""What libtpu says of the compiled loss: memory, traffic and FLOPs, up to 4,096 chips.

Nothing runs on a TPU, and none is needed: `pytest -m tpu` with the extra [tpu].
"""

import os

import pytest

from benchmarks import loss, loss_hlo

pytestmark = pytest.mark.tpu


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("topology", "batch", "embed", "megabytes"),
    [
        ("v5e:4x4", 2**15, 512, 64),
        ("v5e:16x16", 2**20, 768, 700),
        ("v5p:16x16x16", 2**20, 768, 300),
    ],
)
def test_the_grid_stays_under_its_bars(monkeypatch, name, topology, batch, embed, megabytes):
    pytest.importorskip("libtpu")
    for key, value in loss.TPU_ENVIRONMENT.items():
        monkeypatch.setenv(key, os.environ.get(key, value))
    lowered, num_devices = loss.lower(topology, batch, embed, name, "grid")
    compiled = lowered.compile()
    everything = lowered.compile(compiler_options=loss.ALL_IN_HBM)
    for each in (compiled, everything):
        assert each.memory_analysis().temp_size_in_bytes <= megabytes * 1e6
    flops, traffic = loss_hlo.costs(compiled.as_text())
    assert 1.0 <= flops / (8 * batch**2 * embed / num_devices) <= 1.05
    assert 0.9 <= sum(traffic.values()) / (12 * batch * embed / num_devices**0.5) <= 1.1
