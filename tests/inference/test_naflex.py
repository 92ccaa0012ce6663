"""The encoder with a model of any aspect."""

import jax
import numpy as np
import pytest
from tiny import NAFLEX as SPEC
from tiny import filled, inputs

from clipjax.array_types import Patches
from clipjax.config import merge
from clipjax.data.images.naflex import PatchPreprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.encoding.reading import ImageReader
from clipjax.inference import Model
from clipjax.models import build_model
from clipjax.models.images import normalise_images
from clipjax.partitioning import make_mesh


@pytest.fixture(scope="module")
def variables():
    return filled(build_model(SPEC), *inputs(SPEC, 1))


def pictures():
    random = np.random.default_rng(0)
    sizes = [(30, 40), (200, 20), (16, 16), (5, 300), (78, 40)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.slow
def test_images_of_any_aspect_on_two_devices(variables):
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    encoder = Model(SPEC, variables, tokenizer=list, mesh=mesh, batch_size=4)
    found = encoder.encode_image(pictures())
    rows = [PatchPreprocess(4, 12)(image) for image in pictures()]
    assert len({tuple(row.grid) for row in rows}) == 5
    half = (0.5, 0.5, 0.5)

    def embed(variables, patches):
        patches = normalise_images(patches, half, half, "float32")
        return build_model(SPEC).apply(variables, patches, method="encode_image")

    wanted = jax.jit(embed)(variables, jax.tree.map(lambda *x: np.stack(x), *rows))
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    tokens = encoder.image_tokens(pictures(), -2)
    assert tokens.shape == (5, 12, 16)
    inside = np.arange(12) < np.array([row.grid.prod() for row in rows])[:, None]
    assert ((np.abs(tokens).max(axis=2) > 0) == inside).all()
    assert encoder.encode_image([]).shape == (0, 16)


def test_an_evaluation_reads_patches():
    class Source:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": pictures()[index], "key": str(index)}

    with ImageReader(Source(), PatchPreprocess(4, 12), max_bad=0, where="test") as reader:
        batch = reader.read([0, 1, 2])
    assert isinstance(batch.images, Patches) and batch.mask.tolist() == [True, True, False]
    assert batch.images.grid[:2].tolist() != [[1, 1]] * 2 and batch.images.grid[2].tolist() == [
        1,
        1,
    ]
    wanted = PatchPreprocess(4, 12)(pictures()[1])
    np.testing.assert_array_equal(batch.images.pixels[1], wanted.pixels)


def test_one_size_is_asked_for_by_name():
    squash = merge(SPEC, {"preprocess": {"resize": "squash"}})
    assert Preprocess.from_spec(squash) == Preprocess(16, "squash", "bilinear")
    with pytest.raises(ValueError, match=r"'patches'; allowed are .* here images have one size"):
        Preprocess.from_spec(SPEC)
    with pytest.raises(ValueError, match=r"preprocess.max_patches is missing; .*'patches' it has"):
        fields = {k: v for k, v in SPEC["preprocess"].items() if k != "max_patches"}
        PatchPreprocess.from_spec(SPEC | {"preprocess": fields})
    with pytest.raises(ValueError, match="the image tower 'vit' takes images of one size"):
        PatchPreprocess.from_spec(SPEC | {"image": {"name": "vit", "patch_size": 4}})
