"""OpenAI's and OpenCLIP's weights: recognised, settled by hints, carried there and back."""

import functools
import json

import numpy as np
import pytest
import seeded
from small_weights import small

from clipjax.config import merge, to_plain
from clipjax.interop import Hints, WeightFileError, Weights, convert, expected_shapes, export
from clipjax.interop.files import save_safetensors
from clipjax.interop.open_clip import format as open_clip
from clipjax.interop.open_clip import leaves
from clipjax.interop.open_clip.config_in import spec_of_config
from clipjax.interop.open_clip.config_out import config_of_spec
from clipjax.interop.open_clip.names import is_buffer, names_of_spec, plain_names
from clipjax.interop.open_clip.rows import settle
from clipjax.interop.open_clip.shapes import draft_of
from clipjax.interop.tensors import LazyTensor, of_array
from clipjax.layers.position_embeddings import sincos_2d
from clipjax.models import MODELS

ROWS = (
    *("ViT-B-32", "ViT-L-14-336", "ViT-H-14", "RN50x4", "siglip-so400m-14-384"),
    *("siglip-so400m-16-256-i18n", "siglip2-b-16-224", "ViT-L-14-CLIPA"),
    *("xlm-roberta-base-ViT-B-32", "PE-Core-B-16", "PE-Core-bigG-14-448"),
)
TINY_VIT = small(
    "ViT-B-32-quickgelu",
    embed_dim=64,
    image_size=64,
    image={"depth": 2, "num_heads": 1, "mlp_dim": 64},
    text={"depth": 1, "num_heads": 1, "mlp_dim": 40, "context_length": 9},
)
TINY_RESNET = merge(
    TINY_VIT,
    {
        "image": {"name": "modified_resnet", "layers": [1, 2, 1, 1], "width": 4, "num_heads": 2},
        "image_projection": "none",
    },
)
TINY_RESNET["image"] = {
    **{k: TINY_RESNET["image"][k] for k in ("name", "layers", "width", "num_heads")},
    "output_dim": 64,
}


def zeros(shape):
    return LazyTensor(shape, np.dtype(np.float32), lambda: np.zeros(shape, np.float32))


@functools.cache
def shapes_of(spec):
    """Shapes of a spec, given as JSON: tracing the models is most of these tests' time."""
    return expected_shapes(json.loads(spec))


def their_tensors(spec):
    """Their tensors of a spec by name; shapes alone cost anything."""
    ours = {name: zeros(shape) for name, shape in shapes_of(json.dumps(spec)).items()}
    tensors = export(leaves(spec), ours)
    if spec["image"].get("positions") == "sincos2d":
        side, width = spec["image_size"] // spec["image"]["patch_size"], spec["image"]["width"]
        tensors["visual.positional_embedding"] = zeros((side * side + 1, width))
    return tensors


def draft(name, **changes):
    tensors = their_tensors(MODELS[name])
    return draft_of(plain_names({**tensors, **changes}))


def seeded_leaves(spec):
    return {
        name: of_array(seeded.weight(name.replace("/", "."), shape))
        for name, shape in shapes_of(json.dumps(spec)).items()
    }


def tensors_in(folder):
    tensors = open_clip.files.open_tensors(folder / "model.safetensors").tensors
    return {name: (x.shape, x.read().tobytes()) for name, x in tensors.items()}


def nameless(spec):
    return {k: v for k, v in spec.items() if k not in ("name", "source")}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_recognised_by_its_shapes(name):
    found = draft(name)
    assert settle(found, Hints(model=name), where="f") == to_plain(MODELS[name])
    others = [row for row in MODELS.values() if nameless(row) != nameless(MODELS[name])]
    if name in ("ViT-B-32", "ViT-L-14-336", "ViT-H-14"):
        with pytest.raises(ValueError, match=f"model='{name}-quickgelu'"):
            settle(found, Hints(), where="f")
    else:
        assert nameless(settle(found, Hints(), where="f")) == nameless(to_plain(MODELS[name]))
        assert len(others) > 50


def test_the_config_of_pe_core_is_open_clips():
    config = config_of_spec(MODELS["PE-Core-B-16"])
    model, preprocess = config["model_cfg"], config["preprocess_cfg"]
    assert model["custom_text"] and model["embed_dim"] == 1024
    assert model["vision_cfg"] == {
        "image_size": 224,
        "timm_model_name": "vit_pe_core_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": None,
    }
    assert model["text_cfg"]["context_length"] == 32
    assert (preprocess["resize_mode"], preprocess["interpolation"]) == ("squash", "bilinear")
    found = spec_of_config(draft("PE-Core-B-16"), config, where="f")
    assert nameless(found) == nameless(to_plain(MODELS["PE-Core-B-16"]))
    other = {**MODELS["PE-Core-B-16"], "image_size": 240}
    with pytest.raises(ValueError, match=r"has none of image_size 240.*vit_pe_core_base_patch16"):
        config_of_spec(other)


def test_the_config_of_worldwide_models_names_their_end_of_text():
    row = MODELS["ViT-H-14-worldwide-quickgelu"]
    config = config_of_spec(row)
    text = config["model_cfg"]["text_cfg"]
    assert (text["pool_type"], text["eos_id"], text["vocab_size"]) == ("eos", 2, 901_629)
    assert text["hf_tokenizer_name"] == "facebook/xlm-v-base" and config["model_cfg"]["quick_gelu"]
    sizes = ("embed_dim", "image_size", "image", "text")
    draft_of_row = {**{name: row[name] for name in sizes}, "logit_bias": None}
    found = spec_of_config(draft_of_row, config, where="f")
    assert nameless(found) == nameless(to_plain(row))
    text["pool_type"] = "argmax"
    with pytest.raises(ValueError, match="pool_type is not 'eos', as in models of its kind"):
        bare = {**row["text"], "eot_id": None}
        spec_of_config({**draft_of_row, "text": bare}, config, where="f")


def test_a_hint_settles_what_shapes_leave_open():
    found = draft("ViT-L-14")
    with pytest.raises(ValueError) as error:
        settle(found, Hints(), where="weights.pt")
    for text in (
        "weights.pt",
        "'ViT-L-14' (gelu",
        "'ViT-L-14-quickgelu' (quick_gelu",
        "0.5, 0.5, 0.5",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match=r"add model='ViT-L-14' .*model='ViT-L-14-laion2b'"):
        settle(found, Hints(activation="gelu"), where="f")
    assert settle(found, Hints(activation="quick_gelu"), where="f")["name"] == "ViT-L-14-quickgelu"
    spec = settle(found, Hints(model="ViT-L-14-laion2b"), where="f")
    assert spec["preprocess"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("model", "activation", "message"),
    [
        ("ViT-B-32", "quick_gelu", "give model='ViT-B-32-quickgelu' alone"),
        ("ViT-B-32-quickgelu", "gelu", "give model='ViT-B-32' alone"),
        ("ViT-B-32", "gelu_tanh", "give one of the two alone"),
    ],
)
def test_hints_that_contradict_each_other(model, activation, message):
    found = to_plain(MODELS["ViT-B-32"])
    with pytest.raises(ValueError, match=message):
        settle(found, Hints(model=model, activation=activation), where="f")
    agreeing = Hints(model="ViT-B-32", activation="gelu")
    assert settle(found, agreeing, where="f")["name"] == "ViT-B-32"


def test_hints_that_contradict_the_file():
    found = draft("ViT-B-32")
    with pytest.raises(ValueError, match=r"image.patch_size 32 in the file, 16 in ViT-B-16"):
        settle(found, Hints(model="ViT-B-16"), where="f")
    with pytest.raises(ValueError, match=r"is no row of the zoo.*sizes of ViT-B-32"):
        settle(found, Hints(model="vit-b-32"), where="f")
    with pytest.raises(ValueError, match="allowed are gelu, gelu_tanh, quick_gelu"):
        settle(found, Hints(activation="swish"), where="f")


def test_other_pixels_and_a_bias_need_no_row_of_their_own():
    table = zeros((12 * 12 + 1, 768))
    changes = {"visual.positional_embedding": table, "logit_bias": zeros((1,))}
    found = draft("ViT-B-32", **changes)
    spec = settle(found, Hints(model="ViT-B-32"), where="f")
    assert (spec["image_size"], spec["logit_bias"]) == (384, -10.0)
    with pytest.raises(ValueError, match=r"add activation='gelu' \| 'quick_gelu'"):
        settle(found, Hints(), where="f")
    spec = settle(found, Hints(activation="gelu"), where="f")
    assert (spec["name"], spec["image"]["num_heads"], spec["image_size"]) == ("custom", 12, 384)


def test_siglip_takes_the_activation_that_is_asked_for():
    spec = settle(draft("siglip-b-16-224"), Hints(activation="gelu"), where="f")
    assert (spec["image"]["activation"], spec["text"]["activation"]) == ("gelu", "gelu")


@pytest.mark.parametrize(
    "remove, message",
    [
        ("visual.conv1", "lacks visual.conv1.weight"),
        ("visual.class_embedding", "image tower is none of.*visual.conv1.weight"),
        ("token_embedding", "text tower is none of"),
        ("visual.transformer.resblocks.", "has no blocks"),
        ("visual.transformer.resblocks.0.", "number 0 is missing"),
    ],
)
def test_what_is_no_model(remove, message):
    tensors = {k: x for k, x in their_tensors(TINY_VIT).items() if not k.startswith(remove)}
    with pytest.raises(WeightFileError, match=message):
        draft_of(plain_names(tensors))


@pytest.mark.parametrize("spec", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_a_folder_comes_back_bit_for_bit(spec, tmp_path):
    ours = seeded_leaves(spec)
    open_clip.write(tmp_path / "out", Weights(spec, ours))
    assert open_clip.recognises(tmp_path / "out")
    found = open_clip.read(tmp_path / "out", Hints())
    assert found.spec == {**spec, "name": found.spec["name"], "source": found.spec["source"]}
    assert found.leaves.keys() == ours.keys()
    for name, tensor in found.leaves.items():
        assert tensor.read().tobytes() == ours[name].read().tobytes(), name
    # ... and theirs through ours: the same bytes again.
    open_clip.write(tmp_path / "again", found)
    first, second = (tensors_in(tmp_path / name) for name in ("out", "again"))
    assert first == second
    configs = [tmp_path / name / "open_clip_config.json" for name in ("out", "again")]
    assert configs[0].read_text() == configs[1].read_text()


@pytest.mark.parametrize("name", ["siglip-b-16-224", "ViT-L-14-CLIPA", "xlm-roberta-base-ViT-B-32"])
def test_the_other_families_come_back_bit_for_bit(name):
    """At a tiny size, which OpenCLIP has no config of."""
    sizes = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
    spec = merge(
        to_plain(MODELS[name]),
        {"embed_dim": 8, "image_size": 32, "image": sizes, "text": {**sizes, "vocab_size": 20}},
    )
    if spec["text"]["name"] == "bert":
        spec["text"] |= {"num_positions": 90}
    ours = seeded_leaves(spec)
    theirs = export(leaves(spec), ours)
    back = convert(leaves(spec), theirs, spec)
    again = export(leaves(spec), back)
    assert back.keys() == ours.keys() and again.keys() == theirs.keys()
    for found, wanted in ((back, ours), (again, theirs)):
        for key, tensor in found.items():
            assert tensor.read().tobytes() == wanted[key].read().tobytes(), key


def write_file(path, spec, change=lambda tensors: tensors, dtype=np.float32):
    tensors = export(leaves(spec), seeded_leaves(spec))
    tensors = {name: x.astype(dtype) for name, x in tensors.items()}
    save_safetensors(path, change(tensors), {})
    return path


def test_forms_of_the_names(tmp_path):
    """Training checkpoints put `module.` in front, CustomTextCLIP `text.`, and buffers stay."""

    def bend(tensors):
        visual = ("visual.", "logit_")
        tensors = {k if k.startswith(visual) else f"text.{k}": x for k, x in tensors.items()}
        tensors["logit_scale"] = of_array(tensors["logit_scale"].read().reshape(1))
        tensors["visual.bn1.num_batches_tracked"] = of_array(np.zeros((), np.int64))
        return {f"module.{k}": x for k, x in tensors.items()}

    plain = open_clip.read(write_file(tmp_path / "a.safetensors", TINY_RESNET), Hints())
    bent = write_file(tmp_path / "b.safetensors", TINY_RESNET, bend)
    assert open_clip.recognises(bent)
    found = open_clip.read(bent, Hints())
    assert found.ignored == ("visual.bn1.num_batches_tracked",)
    assert found.spec == plain.spec
    for name, tensor in found.leaves.items():
        np.testing.assert_array_equal(tensor.read(), plain.leaves[name].read())


def openai_archive(tensors):
    numbers = {"input_resolution": 64, "context_length": 9, "vocab_size": 49408}
    return {**tensors, **{k: of_array(np.array(v)) for k, v in numbers.items()}}


def test_an_archive_of_openai_needs_no_hint(tmp_path):
    path = write_file(tmp_path / "x.safetensors", TINY_VIT, openai_archive, np.float16)
    found = open_clip.read(path, Hints())
    assert found.spec["image"]["activation"] == found.spec["text"]["activation"] == "quick_gelu"
    assert found.ignored == ("context_length", "input_resolution", "vocab_size")
    value = found.leaves["text_projection/kernel"].read()
    assert value.dtype == np.float32 and (value == value.astype(np.float16)).all()
    with pytest.raises(ValueError, match="archive of OpenAI's, whose models have quick_gelu"):
        open_clip.read(path, Hints(activation="gelu"))
    with pytest.raises(ValueError, match=r"add activation='gelu' \| 'quick_gelu'"):
        open_clip.read(write_file(tmp_path / "y.safetensors", TINY_VIT), Hints())


def test_an_archive_does_not_take_the_name_with_the_other_gelu(tmp_path):
    found = draft("ViT-B-32")
    with pytest.raises(ValueError, match=r"model='ViT-B-32' has gelu.*archive of OpenAI's"):
        open_clip.spec_of_archive(found, Hints(model="ViT-B-32"), "x.pt")
    spec = open_clip.spec_of_archive(found, Hints(model="ViT-B-32-quickgelu"), "x.pt")
    assert spec == to_plain(MODELS["ViT-B-32-quickgelu"])


def clipa(path, table):
    spec = merge(
        to_plain(MODELS["openvision-vit-tiny-patch16-160"]),
        {"image": {"depth": 1}, "text": {"depth": 1, "width": 24, "vocab_size": 20}},
    )
    spec["image"]["positions"] = "learned"

    def change(tensors):
        return {**tensors, "visual.positional_embedding": of_array(table)}

    return write_file(path, spec, change), spec


def test_fixed_positions_are_left_out_and_others_are_kept(tmp_path, monkeypatch):
    fixed = np.pad(np.asarray(sincos_2d(10, 192)), ((1, 0), (0, 0)))
    learned = fixed + np.float32(1e-3)
    for table, positions in ((fixed, "sincos2d"), (fixed.astype(np.float16), "sincos2d")):
        path, spec = clipa(tmp_path / f"{table.dtype}.safetensors", table)
        spec = merge(spec, {"image": {"positions": "sincos2d"}})
        tensors = names_of_spec(plain_names(open_clip.files.open_tensors(path).tensors), spec)
        found, rest = open_clip.fixed_positions(spec, tensors)
        assert found["image"]["positions"] == positions
        assert "visual.positional_embedding" not in rest
        assert convert(leaves(found), rest, found)
    tensors["visual.positional_embedding"] = of_array(learned)
    found, rest = open_clip.fixed_positions(spec, tensors)
    assert found["image"]["positions"] == "learned"
    kept = convert(leaves(found), rest, found)["image_encoder/position_embedding"]
    np.testing.assert_array_equal(kept.read(), learned)


def test_fixed_positions_are_written(tmp_path):
    spec = merge(
        to_plain(MODELS["openvision-vit-tiny-patch16-160"]),
        {"image": {"depth": 1}, "text": {"depth": 1, "width": 24, "vocab_size": 20}},
    )
    open_clip.write(tmp_path / "out", Weights(spec, seeded_leaves(spec)))
    found = open_clip.files.open_tensors(tmp_path / "out" / "model.safetensors").tensors
    table = found["visual.positional_embedding"].read()
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:], sincos_2d(10, 192))
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["act_kwargs"] == {"approximate": "tanh"}
    assert config["model_cfg"]["text_cfg"]["norm_kwargs"] == {"eps": 1e-6}
    assert (tmp_path / "out" / "vocab.txt").is_file()


@pytest.mark.parametrize("name", [*ROWS, "siglip2-g-opt-16-256", "ViT-bigG-14-quickgelu"])
def test_a_config_says_the_whole_spec(name):
    row = to_plain(MODELS[name])
    found = spec_of_config(draft(name), config_of_spec(row), where="f")
    if row["image"].get("pooling") == "map":  # timm fixes the activation of SigLIP's image towers
        row["image"]["activation"] = found["image"]["activation"]
    assert nameless(found) == nameless(row)


@pytest.mark.parametrize(
    "section, change, message",
    [
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool = True is a feature"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type = 'avg'"),
        ("vision_cfg", {"image_size": 96}, r"image_size = 96.*64 pixels"),
        ("vision_cfg", {"head_width": 0}, "head_width = 0: expected a positive"),
        ("vision_cfg", {"layers": 3}, r"vision_cfg.layers = 3, the tensors have 2"),
        ("preprocess_cfg", {"std": [0, 1, 1]}, "std .0.0, 1.0, 1.0. of 3 channels"),
        ("preprocess_cfg", {"resize_mode": "longest"}, "resize 'longest' is not known"),
        ("text_cfg", {"norm_kwargs": {"eps": 0}}, "norm_kwargs.eps = 0.0: expected"),
        ("text_cfg", {"heads": "8"}, "heads = '8': expected a positive"),
        ("text_cfg", {"pool_type": "eos"}, "text_cfg.pool_type = 'eos'"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "the tensors are CLIP's text"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "x"}, "hf_tokenizer_name": "y"}, "clean = 'x'"),
    ],
)
def test_a_config_that_does_not_fit(section, change, message, tmp_path):
    config = config_of_spec(TINY_VIT)
    (config if section in config else config["model_cfg"])[section] |= change
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    write_file(tmp_path / "model.safetensors", TINY_VIT)
    with pytest.raises(ValueError, match=message):
        open_clip.read(tmp_path, Hints())


@pytest.mark.parametrize("content", ["[]", "{", '{"model_cfg": 3}', "[" * 100_000])
def test_a_config_that_is_none(content, tmp_path):
    write_file(tmp_path / "model.safetensors", TINY_VIT)
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"is no (JSON file|OpenCLIP config)"):
        open_clip.read(tmp_path, Hints())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": {"pooling": "mean"}}, "OpenCLIP has no image tower 'vit' with pooling 'mean'"),
        ({"text": {"pooling": "mean"}}, "text pooling 'mean': OpenCLIP has eot, last"),
        ({"text": {"activation": "gelu"}}, "quick_gelu in both towers or in neither"),
        ({"image": {"pooling": "map", "activation": "quick_gelu"}}, "timm.*has none of image_size"),
    ],
)
def test_a_model_that_open_clip_lacks(changes, message, tmp_path):
    spec = merge(TINY_VIT, changes)
    with pytest.raises(ValueError, match=message):
        open_clip.write(tmp_path / "out", Weights(spec, {}))
    assert not (tmp_path / "out").exists()


def test_buffers_are_told_from_weights():
    buffers = ("visual.bn1.num_batches_tracked", "text.transformer.embeddings.position_ids")
    assert all(map(is_buffer, (*buffers, "vocab_size", "attn_mask")))
    assert not any(is_buffer(name) for name in their_tensors(TINY_RESNET))
