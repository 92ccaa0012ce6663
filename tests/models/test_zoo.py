import json

import pytest

from clipjax.models import MODELS, count_model_parameters, resolve_spec

# name: (image, text, total) of the published weights.
PARAMETERS = {
    "ViT-B-32": (87_849_216, 63_428_096, 151_277_313),
    "ViT-B-16": (86_192_640, 63_428_096, 149_620_737),
    "ViT-L-14": (303_966_208, 123_650_304, 427_616_513),
    "ViT-L-14-336": (304_293_888, 123_650_304, 427_944_193),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_digit(name):
    counts = count_model_parameters(MODELS[name])
    assert (counts["image"], counts["text"], counts["total"]) == PARAMETERS[name]


def test_rows_are_plain_data():
    for name, spec in MODELS.items():
        assert spec["name"] == name and spec["source"]
        assert json.loads(json.dumps(spec))["embed_dim"] == spec["embed_dim"]


def test_a_row_with_changes():
    spec = resolve_spec({"name": "ViT-B-32", "image_size": 256, "image": {"dropout": 0.1}})
    assert spec["image_size"] == 256 and spec["image"]["dropout"] == 0.1
    assert spec["image"]["width"] == 768 and MODELS["ViT-B-32"]["image_size"] == 224


@pytest.mark.parametrize(
    "model, message",
    [
        ({"name": "ViT-B-31"}, "'ViT-B-31' is no row of the zoo .*ViT-B-32.*lacks embed_dim"),
        ({"name": "ViT-B-32", "embed": 3}, "config.model.embed is unknown; a model has the fields"),
    ],
)
def test_a_model_that_is_not_known(model, message):
    with pytest.raises(ValueError, match=message):
        resolve_spec(model)
