"""The model contract: what differs is named, what may differ is said."""

import copy

import pytest

from clipjax.checkpoint import check_contract, make_contract
from clipjax.experiment.start import FREE_IN_FINE_TUNING
from clipjax.models.zoo import MODELS

TOKENIZER = {"name": "clip_bpe", "sha256": "ab", "pad_id": 0, "lower": True}


@pytest.fixture
def contract():
    return make_contract(MODELS["ViT-B-32"], TOKENIZER)


def test_it_is_plain_and_holds_all_parts(contract):
    assert set(contract) == {"model", "tokenizer", "preprocess", "logit_scale"}
    assert contract["preprocess"]["mean"] == list(MODELS["ViT-B-32"]["preprocess"]["mean"])
    assert "preprocess" in MODELS["ViT-B-32"]  # the table is not touched
    check_contract(contract, copy.deepcopy(contract))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.image.activation", "relu"),
        ("model.image.layer_norm_eps", 1e-6),
        ("model.text.pooling", "last"),
        ("tokenizer.sha256", "cd"),
        ("tokenizer.pad_id", 1),
        ("preprocess.interpolation", "bilinear"),
        ("logit_scale.max", 200.0),
    ],
)
def test_each_difference_is_named_and_can_be_overridden(contract, path, value):
    wanted = copy.deepcopy(contract)
    node = wanted
    *folders, last = path.split(".")
    for folder in folders:
        node = node[folder]
    before, node[last] = node[last], value
    with pytest.raises(ValueError, match="another model contract") as error:
        check_contract(contract, wanted)
    assert f"  {path}: {before!r} in the checkpoint, {value!r} here" in str(error.value)
    check_contract(contract, wanted, override=[path])
    check_contract(contract, wanted, override=[path.split(".")[0]])
    with pytest.raises(ValueError, match=path):
        check_contract(contract, wanted, override=["model.embed_dim"])


def test_an_override_of_nothing_is_an_error(contract):
    with pytest.raises(ValueError, match=r"'model\.imag' is no key"):
        check_contract(contract, contract, override=["model.imag"])


def test_what_a_fine_tuning_is_free_to_change_is_no_warning(contract, caplog):
    wanted = copy.deepcopy(contract)
    wanted["model"]["image"]["patch_dropout"] = 0.0  # as a config has it; converted weights do not
    assert "patch_dropout" not in contract["model"]["image"]
    check_contract(contract, wanted, free=FREE_IN_FINE_TUNING)
    assert not caplog.records
    check_contract(contract, wanted, override=["model.image.patch_dropout"])
    assert "'absent' in the checkpoint, 0.0 here" in caplog.text  # somebody said so: it is told
    wanted["model"]["image"]["activation"] = "relu"
    with pytest.raises(ValueError, match=r"model\.image\.activation"):
        check_contract(contract, wanted, free=FREE_IN_FINE_TUNING)
