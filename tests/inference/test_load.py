"""`clipjax.load`: each kind of file gives the same model, and its parts."""

import shutil

import jax
import numpy as np
import pytest
from library_folder import SPEC, weights, write_openai

import clipjax
from clipjax.config import merge, to_plain
from clipjax.inference.opened import open_model
from clipjax.interop import Hints, big_vision, export
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
    where = files / name
    model = clipjax.load(where.as_uri() if name == "hf" else where, **KINDS[name])
    wanted = dict(flatten_with_names(ours.variables))
    found = dict(flatten_with_names(model.variables))
    assert found.keys() == wanted.keys()
    for leaf, value in found.items():
        np.testing.assert_array_equal(value, wanted[leaf])
    assert model.spec["image"] == ours.spec["image"] and model.spec["text"] == ours.spec["text"]
    assert sorted(files.rglob("*")) == before  # nothing is written


def test_what_is_kept_of_a_file_is_kept_for_each_model_that_it_is_taken_for(files):
    """Indices, classifiers and features are found by this name."""
    names = [
        open_model(files / "bare.safetensors", Hints(**hints)).weights_sha256
        for hints in ({"activation": "quick_gelu"}, {"activation": "gelu"})
    ]
    assert len({*names}) == 2
    plain = open_model(files / "openai.pt")
    assert plain.weights_sha256 == plain.sha256  # as before there was a choice


def test_a_file_without_its_vocabulary_takes_images_only(tmp_path):
    tower = {"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64}
    changes = {"image_size": 32, "image": tower, "text": tower | {"vocab_size": 50}}
    spec = merge(to_plain(MODELS["siglip-b-16-224"]), {**changes, "embed_dim": 64})
    tensors = export(big_vision.leaves(spec), weights(spec).leaves)
    np.savez(tmp_path / "webli.npz", **{f"params/{name}": x.read() for name, x in tensors.items()})
    model = clipjax.load(tmp_path / "webli.npz", model="siglip-b-16-224")
    assert model.spec["image_size"] == 32 and model.logit_bias is not None
    message = r"webli.npz came without .*give its SentencePiece model \(.*\) by tokenizer=FILE"
    with pytest.raises(ValueError, match=message):
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
    with pytest.raises(ValueError, match="which='ema': the checkpoint holds params"):
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
    for made, missing in ((tmp_path / "run", "checkpoints"), (tmp_path / "run/checkpoints", "")):
        (made / missing).mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match="let the run save one first"):
            clipjax.load(made)


BAD = {
    "a path is None": {"source": None},
    "a path is b'x'": {"source": b"x"},
    "batch_size = '8': expected a whole number": {"batch_size": "8"},
    "batch_size = 2.5: expected a whole number": {"batch_size": 2.5},
    "dtype = 'bf16': allowed are float32, bfloat16": {"dtype": "bf16"},
    "dtype = 'float16': allowed are float32, bfloat16": {"dtype": "float16"},
    "preprocess = 5: allowed are": {"preprocess": 5},
    "model = 5: expected a text": {"model": 5},
    "tokenizer = 5: expected a path": {"tokenizer": 5},
    "ignore = 'visual': expected a tuple": {"ignore": "visual"},
    "rename = 'a': expected a tuple of pairs": {"rename": "a"},
    "lora_alpha = '8': expected a finite number": {"lora_alpha": "8"},
    r"^lora='nope': no such file; give a file of weights$": {"lora": "nope"},
    r'a model of the Hugging Face Hub is written "hf:openai/clip"': {"source": "openai/clip"},
    r'no such file.*near is ViT-B-32, .*load\(FILE, model="ViT-B-32"\)': {"source": "ViT-B-33"},
    "https://x/a.pt is an address of the web.* download it": {"source": "https://x/a.pt"},
    r"'ViT-B-33' is no row of the zoo .`clipjax models` lists all": {"model": "ViT-B-33"},
    r"^model='RN50': .*; it has the sizes of no row of the zoo$": {"model": "RN50"},
    r"activation='\w+' \| '\w+'": {},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_argument_is_named_before_anything_is_read(files, message):
    told = {"source": files / "bare.safetensors", **BAD[message]}
    with pytest.raises(ValueError, match=message):
        clipjax.load(**told)


def test_messages_can_be_pasted(files, tmp_path):
    np.savez(tmp_path / "a.npz", strange=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"strip_prefix= and rename= give other names"):
        clipjax.load(tmp_path / "a.npz")
    (tmp_path / "models--openai--clip").mkdir()
    with pytest.raises(ValueError, match=r"/models--openai--clip: a directory of none"):
        clipjax.load(tmp_path / "models--openai--clip")
    with pytest.raises(ValueError, match=r"which='ema': .*; leave it out$"):
        clipjax.load(files / "bare.safetensors", which="ema")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ValueError, match="as text_from=, and as source= the directory"):
        clipjax.load(tmp_path)
