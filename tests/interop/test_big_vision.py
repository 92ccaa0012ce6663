"""big_vision's files: SigLIP, CLIPA and OpenVision, against a reference of flax's own layers."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from big_vision_reference import IMAGE_SIZE, inputs, reference

from clipjax.config import merge
from clipjax.interop import Hints, LazyTensor, WeightFileError, convert, expected_shapes
from clipjax.interop.big_vision import (
    leaves,
    plain_names,
    read_big_vision,
    recognises_big_vision,
    spec_of,
)
from clipjax.interop.leaves import their_shapes
from clipjax.interop.tensors import of_array
from clipjax.interop.weights import export
from clipjax.models import MODELS, build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

HINTS = {"siglip": Hints("siglip2-b-16-224"), "clipa": Hints("ViT-L-14-CLIPA")}
HINTS["naflex"] = Hints("siglip2-b-16-naflex")
reference = functools.cache(reference)


def lazy(arrays):
    return {name: of_array(array) for name, array in arrays.items()}


def read(arrays, hints):
    """(spec, our leaves, ignored names) of a file's arrays."""
    parameters, ignored = plain_names(lazy(arrays))
    spec = spec_of(parameters, hints)
    flat = parameters["img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"]
    table = leaves(spec, flat_attention=len(flat.shape) == 2)
    found = convert(table, parameters, spec)
    return spec, {name: x.read() for name, x in found.items()}, ignored


@pytest.mark.parametrize(
    "family, scan",
    [
        ("siglip", False),
        pytest.param("siglip", True, marks=pytest.mark.slow),
        ("naflex", True),
        # Its names go there and back below; what it computes: tests/models.
        pytest.param("clipa", False, marks=pytest.mark.slow),
    ],
)
def test_embeddings_are_those_of_the_reference(family, scan):
    arrays, image_embeds, text_embeds = reference(family, scan)
    assert any("encoderblock_0/" in name for name in arrays) != scan
    spec, found, ignored = read(arrays, HINTS[family])
    assert ignored == () and found["logit_scale"] == arrays["t"][0]
    if family == "clipa":  # its positions are fixed: only the row knows the pixels
        assert spec["image_size"] == 224
    spec["image_size"] = IMAGE_SIZE
    params = stack_layers(unflatten_names(found))
    model, images, tokens = build_model(spec), *inputs()
    embed = jax.jit(model.apply)
    out = embed({"params": params}, images, tokens)
    assert np.abs(out.image_embeds - image_embeds).max() <= 2e-6
    assert np.abs(out.text_embeds - text_embeds).max() <= 2e-6
    if scan:
        return
    # The control: queries and keys of one block exchanged.
    name = "text_encoder/transformer/block_1/attention/qkv_kernel"
    wrong = found | {name: found[name][:, [1, 0, 2]]}
    params = stack_layers(unflatten_names(wrong))
    found = embed({"params": params}, images, tokens).text_embeds
    assert np.abs(found - text_embeds).max() > 1e-3


@pytest.mark.parametrize("family", ["siglip", "clipa"])
def test_the_way_back_gives_the_file(family):
    arrays, *_ = reference(family, False)
    spec, found, _ = read(arrays, HINTS[family])
    again = export(leaves(spec), lazy(found))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name].read(), array)


@pytest.mark.parametrize("root", ["params/", "opt/target/"])
def test_what_is_no_parameter_is_listed_and_left(root):
    arrays, *_ = reference("siglip", False)
    _, wanted, _ = read(arrays, HINTS["siglip"])
    others = {"opt/0/mu/img/embedding/kernel": np.ones(3), "opt/0/count": np.ones(())}
    others["chrono/accum_train_time"] = np.ones(())
    file = {f"{root}{name}": array for name, array in arrays.items()} | others
    _, found, ignored = read(file, HINTS["siglip"])
    assert sorted(ignored) == sorted(others)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_flat_attention_and_positions_in_two_tables():
    arrays, *_ = reference("siglip", False)
    _, wanted, _ = read(arrays, HINTS["siglip"])
    file = {}
    for name, array in arrays.items():
        if "/MultiHeadDotProductAttention_0/" in name and not name.endswith("out/bias"):
            array = array.reshape((16,) if name.endswith("bias") else (16, 16))
        file[name] = array
    half = arrays["txt/pos_embedding"] / 2
    file |= {"txt/pos_embedding": half, "txt/Encoder_0/pos_embedding": half}
    with pytest.raises(ValueError, match="do not say how many heads width 16 has; add model="):
        read(file, HINTS["siglip"])
    parameters, _ = plain_names(lazy(file))
    spec, _, _ = read(arrays, HINTS["siglip"])
    found = convert(leaves(spec, flat_attention=True), parameters, spec)
    assert all(np.array_equal(found[name].read(), wanted[name]) for name in wanted)


def abstract(spec):
    """A published file's tensors: names and shapes, no data."""
    shapes, tensors = expected_shapes(spec), {}
    for entry in leaves(spec):
        for name, shape in zip(entry.theirs, their_shapes(entry, shapes[entry.name]), strict=True):
            tensors[name] = LazyTensor(shape, np.dtype(np.float32), lambda: None)
    return tensors


@pytest.mark.parametrize(
    "name",
    [
        "siglip-b-16-224",
        "siglip-b-16-256-i18n",
        "siglip-so400m-14-384",
        "siglip2-b-16-256",
        "siglip2-g-opt-16-256",
        "siglip2-b-16-naflex",
    ],
)
def test_a_published_model_is_known_by_its_sizes(name):
    tensors = abstract(MODELS[name])
    assert spec_of(tensors, Hints()) == MODELS[name]
    assert spec_of(tensors, Hints(name)) == MODELS[name]
    with pytest.raises(ValueError, match=f"model='siglip-l-16-256' does not fit .* {name}$"):
        spec_of(tensors, Hints("siglip-l-16-256"))


def test_pixels_that_the_file_cannot_say():
    tensors = abstract(MODELS["ViT-L-14-CLIPA"])
    with pytest.raises(ValueError, match="sizes of ViT-L-14-CLIPA, ViT-L-14-CLIPA-336, which"):
        spec_of(tensors, Hints())
    for name in ("ViT-L-14-CLIPA", "ViT-L-14-CLIPA-336"):
        assert spec_of(tensors, Hints(name)) == MODELS[name]
    tensors = abstract(MODELS["openvision-vit-tiny-patch8-160"])
    with pytest.raises(ValueError, match=r"tiny-patch8-160, .*-224, .*-384, which differ"):
        spec_of(tensors, Hints())
    with pytest.raises(ValueError, match=r"does not fit .*allowed are openvision"):
        spec_of(tensors, Hints("ViT-L-14-CLIPA"))


def test_own_sizes_with_the_constants_of_a_row():
    arrays, *_ = reference("siglip", False)
    parameters, _ = plain_names(lazy(arrays))
    with pytest.raises(ValueError, match=r"sizes of no published model.*add model="):
        spec_of(parameters, Hints())
    row = MODELS["siglip2-b-16-224"]
    spec = spec_of(parameters, Hints("siglip2-b-16-224", "gelu"))
    tower = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 40, "activation": "gelu"}
    wanted = {"name": "", "embed_dim": 16, "image_size": 12, "image": tower | {"patch_size": 4}}
    wanted["text"] = tower | {"vocab_size": 30, "context_length": 6}
    assert spec == merge(row, wanted)
    del parameters["txt/head/kernel"], parameters["txt/head/bias"]
    assert spec_of(parameters, Hints("siglip2-b-16-224"))["text_projection"] == "none"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.pop("img/Transformer/encoder_norm/bias"), "missing: img/Transformer/enc"),
        (lambda f: f.update({"img/cls": np.ones((1, 1, 16))}), "of no use: img/cls"),
        (lambda f: f.update(b=np.ones(3)), r"b has shape \(3,\), the model takes \(1,\)"),
        (lambda f: f.pop("t"), "is no two-tower model"),
        (lambda f: f.pop("txt/pos_embedding"), "is no whole two-tower model: 'txt/pos"),
        (lambda f: f.clear(), "is no two-tower model"),
    ],
)
def test_a_file_that_is_not_whole(change, message):
    file = dict(reference("siglip", False)[0])
    change(file)
    with pytest.raises(WeightFileError, match=message):
        read(file, HINTS["siglip"])


def test_a_file_is_read_a_leaf_at_a_time(tmp_path):
    arrays, *_ = reference("siglip", True)
    name = "txt/Embed_0/embedding"
    half = arrays[name].astype(ml_dtypes.bfloat16)  # a leaf as mixed precision saves it
    file = {f"params/{key}": array for key, array in (arrays | {name: half}).items()}
    np.savez(tmp_path / "a.npz", **file, **{"opt/0/count": np.ones(())})
    assert recognises_big_vision(tmp_path / "a.npz")
    weights = read_big_vision(tmp_path / "a.npz", HINTS["siglip"])
    assert weights.ignored == ("opt/0/count",)
    found = weights.leaves["text_encoder/token_embedding"].read()
    np.testing.assert_array_equal(found, half.astype(np.float32))
    block = weights.leaves["image_encoder/transformer/block_2/mlp/fc/kernel"].read()
    stacked = arrays["img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"]
    np.testing.assert_array_equal(block, stacked[2])


def test_other_files_are_not_taken_for_one(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    for name in ("a.npz", "b.npz", "none.npz", "."):
        assert not recognises_big_vision(tmp_path / name)
    with pytest.raises(WeightFileError, match=r"a\.npz is no two-tower model"):
        read_big_vision(tmp_path / "a.npz", Hints())


def test_a_model_that_such_files_do_not_hold():
    with pytest.raises(ValueError, match="not 'vit' and 'causal_transformer'"):
        leaves(MODELS["ViT-B-32"])
