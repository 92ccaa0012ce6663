"""Small models of published kinds, random weights for them, and what a checkpoint of ours holds."""

from pathlib import Path

import numpy as np

from clipjax.config import merge, to_plain
from clipjax.interop import Hints, expected_shapes
from clipjax.interop.formats import FORMATS
from clipjax.models.zoo import MODELS


def small(name, *, image, text, **changes):
    """A row of the zoo with smaller towers, under no name of the zoo."""
    towers = {"image": {"width": 16, **image}, "text": {"width": 16, **text}}
    return merge(to_plain(MODELS[name]), {"name": "custom", "source": "", **towers, **changes})


CLIP = small(
    "ViT-B-32-quickgelu",
    embed_dim=24,
    image_size=32,
    image={"patch_size": 16, "depth": 2, "num_heads": 1, "mlp_dim": 64},
    text={"depth": 1, "num_heads": 1, "mlp_dim": 40, "context_length": 24},
)
SIGLIP = small(
    "siglip-b-16-224",
    embed_dim=16,
    image_size=32,
    image={"depth": 2, "num_heads": 1, "mlp_dim": 32},
    text={"depth": 1, "num_heads": 1, "mlp_dim": 32},
)


def arrays_of(shapes, seed=0):
    """Random float32 arrays by name."""
    random = np.random.default_rng(seed)
    return {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def noise(spec, seed=0):
    """Random values for each leaf of a model."""
    return arrays_of(expected_shapes(spec), seed)


def read_checkpoint(path):
    """Spec and leaves of a checkpoint of ours."""
    found = FORMATS["clipjax"].read(Path(path), Hints())
    return found.spec, {name: x.read() for name, x in found.leaves.items()}


def leaves_of(path):
    return read_checkpoint(path)[1]


def assert_same(found, wanted):
    """To the bit."""
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].shape == x.shape and found[name].dtype == np.float32, name
        assert found[name].tobytes() == x.tobytes(), name
