"""The FLOPs formula: equal to the traced program and to open_clip's published profile."""

import pytest

from clipjax.models import MODELS, build_model, resolve_spec
from clipjax.plan.advice import Setting, Step, extra_flops
from clipjax.plan.model_flops import FORMULA_TOWERS, model_flops, traced_flops

# open_clip, docs/model_profile.csv: image and text GFLOP of a forward pass, one example.
PROFILE = {
    "ViT-B-32": (8.82, 5.96),
    "ViT-B-16": (35.13, 5.96),
    "ViT-L-14": (162.03, 13.30),
    "ViT-H-14": (334.59, 47.09),
    "ViT-bigG-14": (967.5, 97.9),
}


@pytest.mark.parametrize("name", [name for name in PROFILE if name in MODELS])
def test_published_profile(name):
    needs = model_flops(resolve_spec({"name": name}), None, batch_size=1)
    assert needs.image / 1e9 == pytest.approx(PROFILE[name][0], rel=2e-3)
    assert needs.text / 1e9 == pytest.approx(PROFILE[name][1], rel=2e-3)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336"])
def test_formula_equals_the_traced_program(name):
    spec = resolve_spec({"name": name})
    assert spec["image"]["name"] in FORMULA_TOWERS
    needs = model_flops(spec, None, batch_size=1)
    image, text = traced_flops(spec, build_model(spec))
    assert (needs.image, needs.text) == (image, text)


def test_a_tower_that_the_formula_does_not_know_is_traced():
    name = "siglip-b-16-224"
    spec = resolve_spec({"name": name})
    needs = model_flops(spec, build_model(spec), batch_size=1)
    assert needs.source == "traced"
    # Blocks of a ViT-B/16 without a class token, in both towers; the pooling head comes on top.
    width, block = 768, 12 * (24 * 768**2)
    patches, tokens = 196, 64
    embedding = 2 * patches * 3 * 16**2 * width
    image = patches * (block + 12 * 4 * patches * width) + embedding
    text = tokens * (block + 12 * 4 * tokens * width) + 2 * width * width
    assert 1.0 < needs.image / image < 1.03
    assert needs.text == text


def test_training_is_three_passes_and_the_loss():
    spec = resolve_spec({"name": "ViT-B-32"})
    needs = model_flops(spec, None, batch_size=1024)
    assert needs.train == 3 * (needs.image + needs.text) + 6 * 1024 * 512
    locked = model_flops(spec, None, batch_size=1024, lock_image=True)
    assert needs.train - locked.train == 2 * needs.image


def test_patch_dropout_shortens_the_tower_not_the_embedding():
    spec = resolve_spec({"name": "ViT-B-32"})
    half = resolve_spec({"name": "ViT-B-32", "image": {"patch_dropout": 0.5}})
    whole, less = (model_flops(s, None, batch_size=1).image for s in (spec, half))
    assert 0.5 < less / whole < 0.55
    assert model_flops(half, None, batch_size=1).image > 0.5 * whole


def test_the_price_of_recomputation():
    """Full remat measured 1.226 x the model's FLOPs in a ViT-L/14, dots 1.012 x in a B/16."""

    def price(name, remat, micro=1, lean=False):
        step = Step(
            spec=resolve_spec({"name": name}), num_parameters=1, optimizer_bytes=8.0,
            batch_per_device=128, num_devices=256, item_bytes=2, lean=lean,
        )  # fmt: skip
        setting = Setting(remat=remat, micro_batches=micro, sharding="zero1", fsdp=1)
        return extra_flops(step, setting)

    assert price("ViT-L-14", "full") == pytest.approx(0.226, abs=0.005)
    assert price("ViT-B-16", "dots") == pytest.approx(0.013, abs=0.005)
    assert price("ViT-B-16", "none") == 0
    assert price("ViT-B-16", "none", micro=4) == pytest.approx(1 / 3)
    # A kernel's backward pass has the scores anyway: nothing of the price of `names` is left.
    assert price("ViT-B-16", "names") == pytest.approx(0.0065, abs=0.0025)
    assert price("ViT-B-16", "names", lean=True) == 0
    assert 0 < price("ViT-B-16", "dots", lean=True) == price("ViT-B-16", "dots")
