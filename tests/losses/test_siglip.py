"""The dense SigLIP loss equals float64 NumPy and open_clip's SigLipLoss; so does the tiled one."""

import pytest

from clipjax.losses import make_loss, siglip_loss


def test_equals_float64(oracle):
    problem = oracle.problem()
    expected = oracle.reference("siglip", *problem)
    found = oracle.run(lambda *a: (siglip_loss(*a), expected[1]), problem)
    oracle.assert_equal(found, expected)


@pytest.mark.parametrize("layout", ["dense", "grid"])
@pytest.mark.parametrize("case", ["start", "trained", "one"])
def test_equals_open_clip(oracle, open_clip_golden, layout, case):
    problem, expected = open_clip_golden(case, "siglip")
    tile_size = None if layout == "dense" else 7
    found = oracle.run(make_loss("siglip", layout=layout, tile_size=tile_size), problem)
    of_loss, of_gradients = oracle.errors(found, expected)
    assert of_loss <= 1e-6
    assert max(of_gradients) <= 1e-5, of_gradients
