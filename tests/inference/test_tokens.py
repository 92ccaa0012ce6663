"""Tokens of a tower, against hidden states that open_clip and timm gave (tests/golden/models)."""

import jax
import numpy as np
import pytest
import seeded
from open_clip_golden import load
from tiny import filled, inputs, tiny_spec

from clipjax.inference import Model
from clipjax.inference import tokens as tokens_module
from clipjax.layers.execution import Execution
from clipjax.models import build_model
from clipjax.models.layers_layout import unstack_layers
from clipjax.partitioning import make_mesh


class Rows:
    """Stands in for a tokenizer: the text "2" has the golden tokens' third row."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, texts):
        return self.rows[[int(text) for text in texts]]


def golden_encoder(case, **options):
    spec, golden, params, _, images, tokens = load(case)
    # The golden images are floats: with these constants they enter the tower as they are.
    spec["preprocess"] = {"resize": "squash", "interpolation": "bicubic"}
    spec["preprocess"] |= {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    encoder = Model(spec, {"params": params}, tokenizer=Rows(tokens), **options)
    encoder.preprocess = Identity(spec["image_size"])
    return encoder, golden, list(images)


class Identity:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        return image

    def blank(self):
        return np.zeros((self.size, self.size, 3), np.float32)


TEXTS = ["0", "1", "2", "3"]


def layer_norm(x, name, spec, tower):
    """As published: float64, population variance."""
    x = x.astype(np.float64)
    scale, bias = (seeded.weight(f"{name}.{part}", x.shape[-1:]) for part in ("weight", "bias"))
    deviation = np.sqrt(x.var(-1, keepdims=True) + spec[tower]["layer_norm_eps"])
    return (x - x.mean(-1, keepdims=True)) / deviation * scale + bias


def test_layers_of_clip_are_those_of_open_clip():
    encoder, golden, images = golden_encoder("vit_gelu")
    hidden = golden["text_hidden"]
    for layer, wanted in ((1, hidden[0]), (-2, hidden[-2]), (3, hidden[2])):
        found = encoder.text_tokens(TEXTS, layer)
        assert found.dtype == np.float32 and found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-5
    assert np.abs(encoder.text_tokens(TEXTS, -1) - hidden[-2]).max() > 1e-2
    # Clip skip: the final norm on the last but one; the last tokens are those of the last.
    norm = [layer_norm(h, "ln_final", encoder.spec, "text") for h in hidden]
    assert np.abs(encoder.text_tokens(TEXTS, -2, final_norm=True) - norm[-2]).max() <= 1e-5
    assert np.abs(encoder.text_tokens(TEXTS) - norm[-1]).max() <= 1e-5
    # Images: the class token first, the last tokens before the final norm.
    hidden = golden["image_hidden"]
    assert np.abs(encoder.image_tokens(images, -2) - hidden[-2]).max() <= 1e-5
    assert np.abs(encoder.image_tokens(images) - hidden[-1]).max() <= 1e-5
    assert encoder.image_tokens(images).shape == (4, 1 + 3 * 3, 32)


@pytest.mark.slow
def test_last_tokens_of_siglip_are_normalised():
    encoder, golden, images = golden_encoder("siglip")
    hidden = golden["image_hidden"]
    wanted = layer_norm(hidden[-1], "visual.trunk.norm", encoder.spec, "image")
    assert np.abs(encoder.image_tokens(images) - wanted).max() <= 1e-5
    again = encoder.image_tokens(images, -1, final_norm=True)
    assert np.abs(again - wanted).max() <= 1e-5
    assert np.abs(encoder.image_tokens(images, 1) - hidden[0]).max() <= 1e-5


def test_unrolled_blocks_keep_the_same_layer():
    spec, golden, params, _, _, tokens = load("vit_gelu")
    model = build_model(spec, execution=Execution(apart=True))
    bind = {"params": unstack_layers(params)}

    def hidden(bind, number):
        return model.apply(bind, tokens, keep_hidden=number, method="text_features").hidden

    found = jax.jit(hidden, static_argnums=1)(bind, 2)
    assert np.abs(found - golden["text_hidden"][1]).max() <= 1e-5
    with pytest.raises(ValueError, match="keep_hidden = 4: the blocks are 1 to 3"):
        jax.eval_shape(lambda bind: hidden(bind, 4), bind)


@pytest.mark.slow  # its stages are golden: tests/models/test_modified_resnet.py
def test_a_stage_of_a_resnet():
    spec = tiny_spec(image_size=32, image_projection="none", embed_dim=8)
    spec["image"] = {"name": "modified_resnet", "layers": [1, 1, 1, 1], "width": 8}
    spec["image"] |= {"num_heads": 4, "output_dim": 8}
    variables = filled(build_model(spec), *inputs(spec, 1))
    encoder = Model(spec, variables, tokenizer=Rows(np.zeros((1, 8), np.int32)))
    image = [np.zeros((32, 32, 3), np.uint8)]
    assert encoder.image_tokens(image, 1).shape == (1, 8 * 8, 32)
    np.testing.assert_array_equal(encoder.image_tokens(image, -1), encoder.image_tokens(image))
    with pytest.raises(ValueError, match="image tower has no final layer norm"):
        encoder.image_tokens(image, -1, final_norm=True)


def test_rows_are_shared_and_a_new_number_of_them_compiles_nothing(monkeypatch):
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    encoder, golden, images = golden_encoder("vit_gelu", mesh=mesh, batch_size=4)
    traces = []
    normalise = tokens_module.normalise_images

    def counted(*args):
        traces.append(args[0].shape)
        return normalise(*args)

    monkeypatch.setattr(tokens_module, "normalise_images", counted)
    wanted = golden["image_hidden"][-2]
    for num in (4, 3, 9, 11):
        rows = np.arange(num) % 4
        found = encoder.image_tokens([images[i] for i in rows], -2)
        assert np.abs(found - wanted[rows]).max() <= 1e-5
    # Batches of four, and of two for the rest of nine.
    assert [shape[0] for shape in traces] == [4, 2]
    encoder.image_tokens(images, -1)  # the control: another layer is another function
    assert len(traces) == 3
    assert encoder.image_tokens([], -2).shape == (0, 10, 32)


def test_bad_requests_are_named():
    encoder, _, images = golden_encoder("vit_gelu")
    for layer in (0, 4, -4):
        with pytest.raises(ValueError, match=rf"layer = {layer}: this text tower has the layers 1"):
            encoder.text_tokens(TEXTS, layer)
    with pytest.raises(ValueError, match="final_norm goes with a layer"):
        encoder.image_tokens(images, final_norm=True)
    with pytest.raises(ValueError, match="text_tokens takes a list of strings"):
        encoder.text_tokens("a cat")
    with pytest.raises(ValueError, match="image_tokens takes a list of images"):
        encoder.image_tokens("a.png")
