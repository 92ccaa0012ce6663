"""`clipjax.load`: each kind of file gives the same model, and its parts."""

import shutil

import jax
import numpy as np
import pytest
from library_folder import SPEC, weights, write_openai

import clipjax
from clipjax.config import merge, to_plain
from clipjax.interop import big_vision, export
from clipjax.interop.formats import FORMATS
from clipjax.models import MODELS
from clipjax.trees import flatten_with_names


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in the forms that are read."""
    root = tmp_path_factory.mktemp("files")
    write_openai(root / "openai.pt")
    FORMATS["hf"].write(root / "hf", weights())
    FORMATS["open_clip"].write(root / "open_clip", weights())
    FORMATS["clipjax"].write(root / "ours", weights())
    (root / "bare.safetensors").write_bytes((root / "open_clip/model.safetensors").read_bytes())
    return root


@pytest.fixture(scope="module")
def ours(files):
    return clipjax.load(files / "ours")


KINDS = {
    "openai.pt": {},
    "hf": {},
    "hf/model.safetensors": {},
    "open_clip": {},
    "bare.safetensors": {"activation": "quick_gelu"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_same_model(files, ours, name):
    before = sorted(files.rglob("*"))
    model = clipjax.load(files / name, **KINDS[name])
    wanted = dict(flatten_with_names(ours.variables))
    found = dict(flatten_with_names(model.variables))
    assert found.keys() == wanted.keys()
    for leaf, value in found.items():
        np.testing.assert_array_equal(value, wanted[leaf])
    assert model.spec["image"] == ours.spec["image"] and model.spec["text"] == ours.spec["text"]
    assert sorted(files.rglob("*")) == before  # nothing is written


def test_a_file_without_its_vocabulary_takes_images_only(tmp_path):
    tower = {"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64}
    changes = {"image_size": 32, "image": tower, "text": tower | {"vocab_size": 50}}
    spec = merge(to_plain(MODELS["siglip-b-16-224"]), {**changes, "embed_dim": 64})
    tensors = export(big_vision.leaves(spec), weights(spec).leaves)
    np.savez(tmp_path / "webli.npz", **{f"params/{name}": x.read() for name, x in tensors.items()})
    model = clipjax.load(tmp_path / "webli.npz", model="siglip-b-16-224")
    assert model.spec["image_size"] == 32 and model.logit_bias is not None
    with pytest.raises(ValueError, match=r"webli.npz came without .*in Python, tokenizer="):
        model.encode_text(["a cat"])


def test_embeddings_are_numpys_or_the_device_s_and_the_parts_give_the_same(files, ours):
    texts = ["a cat", "a dog"]
    wanted = ours.encode_text(texts)
    on_device = ours.encode_text(texts, as_jax=True)
    np.testing.assert_array_equal(on_device, wanted)
    assert on_device.sharding.device_set == set(ours.mesh.devices.flat)
    spread = clipjax.load(files / "openai.pt", mesh=jax.make_mesh((4, 2), ("dp", "x")))
    found = spread.encode_text(texts, as_jax=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.sharding.num_devices == 8
    pixels = np.zeros((2, 224, 224, 3), np.float32)
    output = jax.jit(ours.apply)(ours.variables, pixels, ours.tokenizer(texts))
    np.testing.assert_allclose(output.text_embeds, wanted, atol=1e-6)
    assert float(ours.logit_scale) == pytest.approx(np.log(100)) and ours.logit_bias is None
    assert ours.logit_scale == output.logit_scale


def test_errors_name_arguments(files, tmp_path):
    bare = files / "bare.safetensors"
    with pytest.raises(ValueError, match=r"activation=") as error:
        clipjax.load(bare)
    assert "--" not in str(error.value)
    with pytest.raises(ValueError, match="leave model= and activation= out"):
        clipjax.load(files / "ours", model="ViT-B-32")
    with pytest.raises(ValueError, match=r"leave which= out"):
        clipjax.load(files / "ours", which="ema")
    with pytest.raises(ValueError, match=r"tokenizer=.*is here already"):
        clipjax.load(files / "openai.pt", tokenizer=bare)
    damaged = shutil.copytree(files / "ours", tmp_path / "damaged")
    (damaged / "checkpoints" / "0" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is a damaged checkpoint"):
        clipjax.load(damaged)
    with pytest.raises(ValueError, match="no such file or directory"):
        clipjax.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r'name of the zoo.*model="ViT-B-32"'):
        clipjax.load("ViT-B-32")
    with pytest.raises(ValueError, match=r"mount the bucket"):
        clipjax.load("gs://bucket/ViT-B-32.pt")
    with pytest.raises(ValueError, match=r'variables holds image_encoder.*"params"'):
        clipjax.Model(SPEC, clipjax.load(files / "ours").variables["params"])
