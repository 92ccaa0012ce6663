"""ALIGN and XLM-RoBERTa against transformers: arrays of golden/models/make_transformers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import linen as nn
from open_clip_golden import GOLDEN, relative_error
from tiny import tiny_spec
from transformers_names import align_table, convert, xlm_roberta_table

from clipjax.losses import clip_loss
from clipjax.models import build_model
from clipjax.models.bert import Bert
from clipjax.models.clip import MlpProjection
from clipjax.models.efficientnet import EfficientNet, InvertedBottleneck, round_channels
from clipjax.trees import flatten_with_names

BERT = {"vocab_size": 50, "context_length": 10, "width": 24, "depth": 2, "num_heads": 3}
BERT |= {"mlp_dim": 48, "num_positions": 16}


def read(case):
    golden = dict(np.load(GOLDEN / f"transformers_{case}.npz"))
    groups = {}
    for prefix in ("gradient", "statistics"):
        start = len(prefix) + 1
        groups[prefix] = {k[start:]: v for k, v in golden.items() if k.startswith(f"{prefix}/")}
    return golden, groups["gradient"], groups["statistics"]


def weights(tensors):
    return {name: seeded.weight(name, x.shape) for name, x in tensors.items()}


def assert_gradients(found, wanted):
    errors = jax.tree.map(relative_error, jax.device_get(found), wanted)
    assert {name: float(e) for name, e in flatten_with_names(errors) if not e <= 1e-4} == {}


def align():
    """(golden, wanted gradients, function of the parameters, parameters, tokens)"""
    golden, gradients, statistics = read("align")
    spec = tiny_spec(embed_dim=80, image_size=40, text_projection="linear_bias")
    spec["image"] = {"name": "efficientnet", "width_factor": 0.25, "depth_factor": 0.3}
    spec["text"] = {"name": "bert", **BERT}
    spec["image_projection"] = "none"
    model = build_model(spec)
    table = align_table(spec)
    running = convert(weights(statistics), table)
    tokens = seeded.tokens(4, 10, 50)

    def run(params):
        bind = {"params": params, "batch_stats": running}
        out = model.apply(bind, seeded.images(4, 40), tokens)
        text = model.apply(bind, tokens, keep_hidden=True, method="text_features")
        return clip_loss(out.image_embeds, out.text_embeds, out.logit_scale), (out, text.hidden)

    params, want = (convert(t, table) for t in (weights(gradients), gradients))
    return golden, want, run, params, tokens


@pytest.mark.slow  # as a directory of its files: tests/interop/test_hugging_face.py
def test_align():
    golden, _, run, params, tokens = align()
    loss, (out, hidden) = jax.jit(run)(params)
    assert np.abs(out.image_embeds - golden["image_embeds"]).max() <= 5e-6
    assert np.abs(out.text_embeds - golden["text_embeds"]).max() <= 2e-6
    assert abs(loss - golden["loss"]) <= 1e-5
    # Rows of padding are of no consequence, and nobody normalises them the same way.
    inside = (tokens != 0)[None, :, :, None]
    assert np.abs((hidden - golden["text_hidden"]) * inside).max() <= 1e-5


@pytest.mark.slow
def test_gradient_of_align():
    _, want, run, params, _ = align()
    found, _ = jax.jit(jax.grad(run, has_aux=True))(params)
    assert_gradients(found, want)


@pytest.mark.parametrize("pad_id", [1, 0])
def test_xlm_roberta(pad_id):
    golden, gradients, _ = read("xlm_roberta")
    table = xlm_roberta_table(BERT)
    encoder = Bert(
        **BERT,
        layer_norm_eps=1e-5,
        pad_id=pad_id,
        position_offset=2,
        num_segments=1,
        pooling="mean",
    )
    tokens = seeded.tokens(4, 10, 50)
    tokens = np.where(tokens == 0, 1, np.maximum(tokens, 2))

    def embed(params):
        pooled = encoder.apply({"params": params["encoder"]}, tokens).pooled
        x = MlpProjection(16, jnp.float32).apply({"params": params["projection"]}, pooled)
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return (x * seeded.weight("direction", (16,))).sum(), x

    params = convert(weights(gradients), table)
    if pad_id == 0:  # the control: padding that is attended to and averaged
        assert np.abs(jax.jit(embed)(params)[1] - golden["text_embeds"]).max() > 1e-2
        return
    found, embeds = jax.jit(jax.grad(embed, has_aux=True))(params)
    assert np.abs(embeds - golden["text_embeds"]).max() <= 2e-6
    assert_gradients(found, convert(gradients, table))


def test_channels_are_rounded_as_published():
    stem_and_stages = [32, 16, 24, 40, 80, 112, 192, 320]
    b7 = [round_channels(channels, 2.0) for channels in stem_and_stages]
    assert b7 == [64, 32, 48, 80, 160, 224, 384, 640]
    assert [round_channels(c, 1.4) for c in (24, 40, 112)] == [32, 56, 160]


def test_a_block_is_skipped_by_example_and_not_by_place():
    block = InvertedBottleneck(8, 3, 1, 1, True, 0.5, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (8, 2, 2, 8))
    ids = jnp.arange(8)
    variables = nn.unbox(jax.jit(lambda k: block.init(k, x, False, ids))(jax.random.key(0)))

    @jax.jit
    def run(ids):
        rngs = {"dropout": jax.random.key(1)}
        out, _ = block.apply(variables, x, True, ids, rngs=rngs, mutable=["batch_stats"])
        return jnp.abs(out - x).max(axis=(1, 2, 3)) == 0

    skipped = run(ids)
    assert 0 < skipped.sum() < 8
    np.testing.assert_array_equal(run(ids[::-1]), skipped[::-1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Bert(**{**BERT, "num_heads": 5}), "width = 24 does not divide by num_heads = 5"),
        (
            lambda: Bert(**{**BERT, "pooling": "eot"}),
            "pooling = 'eot': allowed are cls, mean, pooler",
        ),
        (lambda: Bert(**BERT, position_offset=7), "does not fit num_positions = 16"),
        (lambda: EfficientNet(32, 1.0, 1.0, patch_dropout=0.1), "no patches are left out"),
        (
            lambda: EfficientNet(32, 1.0, 1.0, drop_connect=1.0),
            "drop_connect = 1.0: expected a finite",
        ),
    ],
)
def test_what_cannot_be_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()
