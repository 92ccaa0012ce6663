"""Outputs at published widths against open_clip's, as make_open_clip_published.py wrote them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from open_clip_names import convert_all
from published_weights import weight

from clipjax.interop import expected_shapes, export
from clipjax.interop.open_clip import leaves
from clipjax.interop.tensors import LazyTensor
from clipjax.models import build_model

GOLDEN = Path(__file__).parent.parent / "golden" / "interop"
BATCH = 4


def load(name):
    """(golden arrays, spec, their tensors)"""
    golden = dict(np.load(GOLDEN / f"open_clip_{name}.npz"))
    spec = json.loads(str(golden["spec"]))
    ours = {k: LazyTensor(x, np.dtype("f4"), list) for k, x in expected_shapes(spec).items()}
    shapes = {k: x.shape for k, x in export(leaves(spec), ours).items()}
    return golden, spec, {k: weight(k, shape) for k, shape in shapes.items()}


@pytest.mark.slow  # of narrower towers: tests/models/test_open_clip_parity.py
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_published_widths(name):
    golden, spec, tensors = load(name)
    model, variables = build_model(spec), convert_all(tensors, spec)
    text = spec["text"]
    images = seeded.images(BATCH, spec["image_size"])
    tokens = seeded.tokens(BATCH, text["context_length"], text["vocab_size"])

    @jax.jit
    def run(variables):
        out = model.apply(variables, images, tokens)
        text = model.apply(variables, tokens, keep_hidden=True, method="text_features")
        logits = jnp.exp(out.logit_scale) * out.image_embeds @ out.text_embeds.T
        return out, logits + (0 if out.logit_bias is None else out.logit_bias), text.hidden

    out, logits, hidden = run(variables)
    bar = 5e-6 if name == "RN50" else 2e-6
    assert np.abs(out.image_embeds - golden["image_embeds"]).max() <= bar
    assert np.abs(out.text_embeds - golden["text_embeds"]).max() <= 2e-6
    assert np.abs(logits - golden["logits"]).max() <= 1e-4
    assert np.abs(hidden[:, :, ::7, ::16] - golden["text_hidden"]).max() <= 1e-5
    # The control: one square kernel of the text tower the wrong way around.
    square = next(k for k in tensors if k.endswith("0.attn.out_proj.weight") and "visual" not in k)
    wrong = convert_all({**tensors, square: tensors[square].T}, spec)
    assert np.abs(run(wrong)[0].text_embeds - golden["text_embeds"]).max() > 1e-3
