"""Twenty steps of training give the losses of OpenCLIP's model in torch."""

from pathlib import Path

import numpy as np
import pytest
import training_case as case

GOLDEN = Path(__file__).parent.parent / "golden" / "interop"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "open_clip_training.npz"))


def tensors(golden):
    prefix = "shape/"
    shapes = {k.removeprefix(prefix): x for k, x in golden.items() if k.startswith(prefix)}
    return {name: case.weight(name, tuple(shape)) for name, shape in shapes.items()}


@pytest.mark.slow
def test_losses_of_training(golden):
    losses, logit_scales = case.losses(tensors(golden))
    assert np.abs(losses - golden["losses"]).max() <= TOLERANCE
    assert np.abs(logit_scales - golden["logit_scales"]).max() <= 1e-6
    assert logit_scales[0] == np.float32(np.log(100)) and losses[-1] < losses[0] / 4


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"mask": "openclip"}, {"weight_decay": 0.1}], ids=str)
def test_another_decay_is_seen(golden, change):
    """Half the decay, or none of the positions."""
    losses, _ = case.losses(tensors(golden), **change)
    assert np.abs(losses - golden["losses"]).max() > 10 * TOLERANCE


@pytest.mark.interop
def test_torch_gives_the_losses_that_are_kept(golden, monkeypatch):
    monkeypatch.syspath_prepend(GOLDEN)
    from make_open_clip_training import losses

    curve, logit_scales = losses()
    np.testing.assert_allclose(curve, golden["losses"], atol=TOLERANCE / 2)
    np.testing.assert_allclose(logit_scales, golden["logit_scales"], atol=1e-6)
