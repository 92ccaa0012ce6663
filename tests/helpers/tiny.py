"""A tiny spec, changed by nested keys, and its variables."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.config import merge
from clipjax.models import MODELS, build_model
from clipjax.trees import map_with_names

_TOWER = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
SPEC = {
    "name": "tiny",
    "embed_dim": 8,
    "image_size": 16,
    "image": {
        "name": "vit",
        "patch_size": 4,
        **_TOWER,
        "activation": "gelu",
        "layer_norm_eps": 1e-5,
        "pooling": "cls",
    },
    "text": {
        "name": "causal_transformer",
        "vocab_size": 20,
        "context_length": 8,
        **_TOWER,
        "activation": "gelu",
        "layer_norm_eps": 1e-5,
        "pooling": "eot",
    },
    "tokenizer": {"name": "clip_bpe"},
    "preprocess": {
        "resize": "shortest",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "logit_scale": {"init": 1 / 0.07, "max": 100.0},
    "logit_bias": None,
    "source": "",
}

# A model of images of any aspect.
NAFLEX = merge(
    MODELS["siglip2-b-16-naflex"],
    {
        "embed_dim": 16,
        "image_size": 16,
        "image": _TOWER | {"patch_size": 4, "position_side": 4},
        "text": _TOWER | {"vocab_size": 20, "context_length": 6},
        "preprocess": {"max_patches": 12},
    },
)


def tiny_spec(**changes):
    """`tiny_spec(image={"pooling": "mean"})`."""
    return merge(SPEC, changes)


def inputs(spec, batch=3, seed=0):
    """Normalised images and token rows."""
    size, text = spec["image_size"], spec["text"]
    random = np.random.default_rng(seed)
    images = random.standard_normal((batch, size, size, 3), np.float32)
    tokens = random.integers(0, text["vocab_size"], (batch, text["context_length"]), np.int32)
    images, tokens = jnp.asarray(images), jnp.asarray(tokens)
    return images, tokens


def filled(module, *inputs):
    """Variables of a module with noise in each leaf: shapes alone are traced, nothing compiles."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    random = np.random.default_rng(0)

    def fill(name, leaf):
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        if name.endswith(("scale", "var")):
            return jnp.asarray(1 + 0.2 * abs(noise))
        fan_in = np.prod(leaf.shape[-2:-1]) if leaf.ndim > 1 else 10
        return jnp.asarray(noise * np.float32(fan_in**-0.5))

    return map_with_names(fill, shapes)


def model_and_params(spec, **options):
    """The model and noise for its parameters."""
    model = build_model(spec, **options)
    return model, filled(model, *inputs(spec, 1))["params"]
