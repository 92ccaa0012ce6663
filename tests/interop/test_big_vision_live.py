"""big_vision's files as open_clip and timm load them: needs the [interop] extra."""

import functools

import jax
import numpy as np
import pytest
from big_vision_reference import (
    DEPTH,
    HEADS,
    IMAGE_SIZE,
    LENGTH,
    MLP,
    PATCH,
    VOCAB,
    WIDTH,
    inputs,
    reference,
)

from clipjax.interop import Hints
from clipjax.interop.big_vision import read_big_vision
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

pytestmark = pytest.mark.interop


def open_clip_siglip():
    """open_clip's CustomTextCLIP with timm's ViT, as small as the reference, tanh-GELU in both."""
    import torch
    import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision
    import timm
    from open_clip.transformer import LayerNorm, TextTransformer

    model = torch.nn.Module()
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP / WIDTH,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
    )
    model.visual = torch.nn.ModuleDict({"trunk": trunk})
    model.text = TextTransformer(
        context_length=LENGTH,
        vocab_size=VOCAB,
        width=WIDTH,
        heads=HEADS,
        layers=DEPTH,
        mlp_ratio=MLP / WIDTH,
        output_dim=WIDTH,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        act_layer=functools.partial(torch.nn.GELU, approximate="tanh"),
        norm_layer=functools.partial(LayerNorm, eps=1e-6),
    )
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    model.logit_bias = torch.nn.Parameter(torch.zeros(()))
    return model.eval()


@pytest.mark.parametrize("scan", [False, True])
def test_embeddings_are_those_of_open_clip(tmp_path, scan):
    torch = pytest.importorskip("torch")
    model = open_clip_siglip()
    from open_clip.convert import load_big_vision_weights

    arrays, *_ = reference("siglip", scan)
    path = tmp_path / "siglip.npz"
    np.savez(path, **{f"params/{name}": array for name, array in arrays.items()})
    load_big_vision_weights(model, str(path))
    images, tokens = inputs()
    normalise = functools.partial(torch.nn.functional.normalize, dim=-1)
    with torch.no_grad():
        theirs_image = normalise(model.visual["trunk"](torch.tensor(images.transpose(0, 3, 1, 2))))
        theirs_text = normalise(model.text(torch.tensor(tokens, dtype=torch.long)))
    weights = read_big_vision(path, Hints("siglip2-b-16-224"))
    leaves = {name: x.read() for name, x in weights.leaves.items()}
    assert leaves["logit_scale"] == model.logit_scale.item()
    assert leaves["logit_bias"] == model.logit_bias.item()
    params = stack_layers(unflatten_names(leaves))
    ours = jax.jit(build_model(weights.spec).apply)({"params": params}, images, tokens)
    assert np.abs(ours.image_embeds - theirs_image.numpy()).max() <= 2e-6
    assert np.abs(ours.text_embeds - theirs_text.numpy()).max() <= 2e-6
