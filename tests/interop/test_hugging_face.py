"""Directories of transformers against golden arrays of golden/interop/make_hugging_face.py."""

import filecmp
import json
import shutil

import numpy as np
import pytest
from hugging_face_case import (
    CASES,
    CHINESE,
    GOLDEN,
    MASKED,
    PICTURES,
    TEXTS,
    edit,
    final_norm,
    inputs,
    make_directory,
    picture,
    read,
    run,
    save_tensors,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clipjax.checkpoint import load_tokenizer, open_checkpoint
from clipjax.config import to_plain
from clipjax.data.images.preprocess import Preprocess
from clipjax.interop import WeightFileError, hugging_face
from clipjax.interop.converting import convert_weights
from clipjax.interop.files import open_tensors
from clipjax.interop.hugging_face.comparison import row_of
from clipjax.interop.hugging_face.config_json import read_config, write_config
from clipjax.interop.weights import Weights
from clipjax.models import MODELS
from clipjax.tokenizers import ClipBPE, make_tokenizer


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """By case: the directory, its golden arrays, its tensors. Tests that change one copy it."""
    folder = tmp_path_factory.mktemp("theirs")
    return {case: (folder / case, *make_directory(folder / case, case)) for case in CASES}


@pytest.fixture
def copy(directories, tmp_path):
    """A function that copies the directory of a case."""

    def make(case):
        return shutil.copytree(directories[case][0], tmp_path / "copy")

    return make


def load(path):
    return {name: x.read() for name, x in open_tensors(path / "model.safetensors").tensors.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_directory_computes_what_transformers_does(directories, case):
    path, golden, _ = directories[case]
    weights = read(path)
    image_embeds, text_embeds, logits, hidden = run(weights, *inputs(weights.spec))
    is_align = case == "align"
    assert np.abs(image_embeds - golden["image_embeds"]).max() <= (5e-6 if is_align else 2e-6)
    assert np.abs(text_embeds - golden["text_embeds"]).max() <= 2e-6
    assert np.abs(logits - golden["logits"]).max() <= 1e-4
    # Rows of masked padding are of no consequence, and nobody normalises them the same way.
    tokens = inputs(weights.spec)[1]
    inside = (tokens != weights.spec["text"].get("pad_id"))[..., None] if case in MASKED else True
    assert np.abs((hidden - golden["text_hidden"]) * inside).max() <= 1e-5
    if case not in MASKED:  # what Stable Diffusion 2 is conditioned on
        assert np.abs(final_norm(weights, hidden[-2]) - golden["penultimate"]).max() <= 1e-5


@pytest.mark.parametrize(
    "pair", [("self_attn.q_proj", "self_attn.k_proj"), ("layer_norm1", "layer_norm2")]
)
def test_two_tensors_that_are_exchanged_are_seen(directories, copy, pair):
    """The control of the test above."""
    _, golden, tensors = directories["clip"]
    first, second = (f"text_model.encoder.layers.0.{name}.weight" for name in pair)
    path = copy("clip")
    changes = {first: tensors[second], second: tensors[first]}
    save_tensors(path / "model.safetensors", {**tensors, **changes})
    weights = read(path)
    weights.spec["name"] = "clip"
    _, text_embeds, _, hidden = run(weights, *inputs(weights.spec))
    assert np.abs(text_embeds - golden["text_embeds"]).max() > 1e-4
    assert np.abs(hidden - golden["text_hidden"]).max() > 1e-3


def test_the_end_of_text_of_older_configs(directories, copy):
    path = copy("clip")
    edit(path, "config.json", "text_config", "eos_token_id", value=2)
    assert {**read(path).spec, "name": "clip"} == read(directories["clip"][0]).spec


def test_a_clip_directory_without_side_files_gets_openais(copy):
    path = copy("clip")
    edit(path, "preprocessor_config.json", "image_mean", value=[0.1, 0.2, 0.3])
    assert read(path).spec["preprocess"]["mean"] == [0.1, 0.2, 0.3]
    kept = ("config.json", "model.safetensors")
    for file in path.iterdir():
        if file.name not in kept:
            file.unlink()
    spec = read(path).spec
    assert spec["tokenizer"] == {"name": "clip_bpe"}
    assert to_plain(spec["preprocess"]) == to_plain(MODELS["ViT-B-32"]["preprocess"])


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_changes_no_bit(directories, tmp_path, case):
    path, _, tensors = directories[case]
    weights = read(path)
    hugging_face.write(tmp_path / "b", weights)
    written = load(tmp_path / "b")
    assert written.keys() == tensors.keys()
    differing = {n for n in tensors if not np.array_equal(written[n], tensors[n])}
    if case == "align":
        # A logarithm there, a temperature here; and a pooler that nothing reads.
        pooler = {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}
        assert differing <= {"temperature"} | pooler
        np.testing.assert_allclose(written["temperature"], tensors["temperature"], rtol=3e-7)
    else:
        assert differing == set()
    again = read(tmp_path / "b")
    assert again.spec == {**weights.spec, "tokenizer": again.spec["tokenizer"]}
    assert again.leaves.keys() == weights.leaves.keys()
    assert all(np.array_equal(x.read(), again.leaves[n].read()) for n, x in weights.leaves.items())
    hugging_face.write(tmp_path / "c", again)
    names = sorted(p.name for p in (tmp_path / "b").iterdir())
    assert filecmp.cmpfiles(tmp_path / "b", tmp_path / "c", names, shallow=False)[0] == names


def test_a_row_of_the_zoo_is_recognised_and_its_spec_returns():
    names = ["ViT-B-32-quickgelu", "ViT-L-14", "siglip2-g-opt-16-256", "align-base"]
    names += ["chinese-clip-vit-huge-patch14", "ViT-H-14-worldwide"]
    for name in [*names, "siglip2-so400m-16-naflex"]:
        kind, config = write_config(MODELS[name])
        found, spec, own = read_config(json.loads(json.dumps(config)), "config.json")
        assert found == kind and own["name"] == name
        spec["tokenizer"] = own["tokenizer"]
        assert row_of(spec)["name"] == name


def test_what_only_we_say_travels_in_a_field_of_its_own(directories, tmp_path):
    weights = read(directories["clip"][0])
    spec = {**weights.spec, "name": "mine", "logit_scale": {"init": 3.0, "max": None}}
    spec["image"] = {**spec["image"], "patch_dropout": 0.5}
    hugging_face.write(tmp_path / "b", Weights(spec, weights.leaves))
    assert read(tmp_path / "b").spec == spec
    edit(tmp_path / "b", "config.json", "clipjax", "text", "depth", value=2)
    with pytest.raises(WeightFileError, match=r"clipjax.text.depth is 2, the other .* say 3"):
        read(tmp_path / "b")


def test_shards_and_their_index(directories, copy):
    path = copy("clip")
    tensors = directories["clip"][2]
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_tensors(path / file, {name: tensors[name] for name in names[i::2]})
    index = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    leaves, wanted = read(path).leaves, read(directories["clip"][0]).leaves
    assert all(np.array_equal(x.read(), wanted[n].read()) for n, x in leaves.items())


def test_half_precision_is_read_as_float32(directories, copy):
    path = copy("clip")
    halves = {n: x.astype(np.float16) for n, x in directories["clip"][2].items()}
    save_tensors(path / "model.safetensors", halves)
    found = read(path).leaves["text_encoder/ln_final/bias"].read()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halves["text_model.final_layer_norm.bias"])


def test_older_configs_are_read_as_transformers_reads_them(copy):
    path = copy("clip")
    config = json.loads((path / "config.json").read_text())
    config["text_config_dict"] = {**config["text_config"], "hidden_act": "gelu_new"}
    del config["text_config_dict"]["layer_norm_eps"]
    config["vision_config_dict"] = None
    (path / "config.json").write_text(json.dumps(config))
    spec = read(path).spec
    # What the older object leaves out is the default: the newer object counts for nothing.
    assert spec["text"]["activation"] == "gelu_tanh" and spec["text"]["layer_norm_eps"] == 1e-5
    assert spec["image"]["activation"] == "quick_gelu"


def test_the_tokenizer_is_that_of_transformers():
    golden = np.load(GOLDEN / "hugging_face_clip_tokenizer.npz")
    texts = json.loads(str(golden["texts"]))
    ends = np.cumsum(golden["lengths"])
    rows = np.split(golden["token_ids"], ends[:-1])
    assert len(rows) == len(texts)
    tokens = ClipBPE(context_length=77)(texts)
    assert [row[: len(ids)].tolist() for row, ids in zip(tokens, rows, strict=True)] == [
        ids.tolist() for ids in rows
    ]
    assert all(row[len(ids) :].sum() == 0 for row, ids in zip(tokens, rows, strict=True))


def test_the_written_tokenizer_gives_our_ids(directories, tmp_path):
    hugging_face.write(tmp_path / "b", read(directories["clip"][0]))
    backend = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json"))
    texts = json.loads(str(np.load(GOLDEN / "hugging_face_clip_tokenizer.npz")["texts"]))
    # Its normaliser repairs no mojibake and keeps control characters: plain text is compared.
    plain = [text for text in texts if text.isascii() and text.isprintable()]
    assert len(plain) > 30
    ours = ClipBPE()
    assert [backend.encode(x).ids[1:-1] for x in plain] == [ours.encode(x) for x in plain]
    assert backend.encode("").ids == [ours.start_id, ours.end_id]


def test_siglip_tokenizes_as_transformers(directories, tmp_path):
    path, golden, _ = directories["siglip"]
    first = read(path)
    assert first.spec["tokenizer"]["model"] == "spiece.model"
    hugging_face.write(tmp_path / "b", first)
    for weights in (first, read(tmp_path / "b")):
        spec = {**weights.spec["tokenizer"]}
        spec["model"] = str(weights.tokenizer_files[spec["model"]])
        found = make_tokenizer(spec, context_length=16)(TEXTS)
        np.testing.assert_array_equal(found, golden["token_ids"])


@pytest.mark.parametrize(
    "case, file, texts",
    [("chinese_clip", "vocab.txt", CHINESE), ("dual_encoder", "tokenizer.json", TEXTS)],
)
def test_texts_are_tokenized_as_there(directories, tmp_path, case, file, texts):
    path, golden, _ = directories[case]
    first = read(path)
    assert first.spec["text"]["context_length"] == 16
    hugging_face.write(tmp_path / "b", first)
    for weights in (first, read(tmp_path / "b")):
        assert weights.spec["tokenizer"]["model"] == file
        spec = {**weights.spec["tokenizer"], "model": str(weights.tokenizer_files[file])}
        found = make_tokenizer(spec, context_length=16)(texts)
        np.testing.assert_array_equal(found, golden["token_ids"])


def test_chinese_without_its_vocabulary_asks_for_the_file(copy, directories):
    path = copy("chinese_clip")
    (path / "vocab.txt").unlink()
    with pytest.raises(WeightFileError, match="no one tokenizer of the zoo has 57 ids"):
        read(path)
    name = "text_model.embeddings.word_embeddings.weight"
    words = np.zeros((21_128, 24), np.float32)
    save_tensors(path / "model.safetensors", {**directories["chinese_clip"][2], name: words})
    edit(path, "config.json", "text_config", "vocab_size", value=21_128)
    weights = read(path)
    assert weights.spec["tokenizer"] == {"name": "wordpiece", "shipped": False}
    assert weights.tokenizer() == (weights.spec["tokenizer"], None)


def test_a_dual_encoder_without_its_vocabulary_asks_for_the_file(copy):
    path = copy("dual_encoder")
    (path / "tokenizer.json").unlink()
    spec, tokenizer = read(path).tokenizer()
    assert tokenizer is None and spec == {"name": "tokenizer_json", "pad_id": 1}


@pytest.fixture
def worldwide(directories, copy):
    """CLIP's directory as one of MetaCLIP 2, over a vocabulary of 290 ids that ends with 2."""
    path = copy("clip")
    for file in ("vocab.json", "merges.txt", "tokenizer.json"):
        (path / file).unlink(missing_ok=True)
    shutil.copy(directories["dual_encoder"][0] / "tokenizer.json", path)
    tensors = load(path)
    name = "text_model.embeddings.token_embedding.weight"
    save_tensors(path / "model.safetensors", {**tensors, name: tensors[name][:290]})
    edit(path, "config.json", "model_type", value="metaclip_2")
    edit(path, "config.json", "text_config", "vocab_size", value=290)
    edit(path, "config.json", "text_config", "eos_token_id", value=2)
    return path


def test_metaclip_2_there_and_back(worldwide, tmp_path):
    weights = read(worldwide)
    assert weights.spec["text"]["eot_id"] == 2 and weights.tokenizer()[1] is not None
    hugging_face.write(tmp_path / "b", weights)
    again = read(tmp_path / "b")
    assert again.spec == {**weights.spec, "tokenizer": again.spec["tokenizer"]}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "metaclip_2"
    written, tensors = load(tmp_path / "b"), load(worldwide)
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], x) for name, x in tensors.items())


def test_a_vocabulary_of_another_end_is_refused(worldwide, tmp_path):
    edit(worldwide, "config.json", "text_config", "eos_token_id", value=3)
    with pytest.raises(WeightFileError, match="eos_token_id is 3, the tokenizer ends with 2"):
        read(worldwide)
    edit(worldwide, "config.json", "text_config", "eos_token_id", value=290)
    with pytest.raises(WeightFileError, match="eos_token_id is 290; supported is an id from 1 to"):
        read(worldwide)
    (worldwide / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    edit(worldwide, "config.json", "text_config", "eos_token_id", value=2)
    with pytest.raises(WeightFileError, match="no one tokenizer of the zoo has 290 ids"):
        read(worldwide)


def test_a_dual_encoder_is_read_by_either_names_of_transformers(directories, copy):
    path = copy("clip")
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model."): x
        for name, x in directories["clip"][2].items()
        if not name.startswith("text_model.")
    }
    tensors |= {
        name: x
        for name, x in directories["dual_encoder"][2].items()
        if name.startswith(("text_model.", "text_projection."))
    }
    config = json.loads((path / "config.json").read_text())
    other = json.loads((directories["dual_encoder"][0] / "config.json").read_text())
    config |= {"model_type": "vision-text-dual-encoder", "text_config": other["text_config"]}
    config["vision_config"]["model_type"] = "clip_vision_model"
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(directories["dual_encoder"][0] / "tokenizer.json", path)
    found = []
    for names in ("vision_model.vision_model.", "vision_model."):
        renamed = {k.replace("vision_model.vision_model.", names): x for k, x in tensors.items()}
        save_tensors(path / "model.safetensors", renamed)
        found.append({name: x.read() for name, x in read(path).leaves.items()})
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(x, found[1][name]) for name, x in found[0].items())


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (("text_config", "model_type"), "electra", r"model_type is 'electra'; supported is 'bert'"),
        (("vision_config", "model_type"), "swin", r"model_type is 'swin'; supported is 'vit' or"),
        (("vision_config", "qkv_bias"), False, "qkv_bias is False; supported is True"),
        (("vision_config", "pooler_output_size"), 8, "pooler_output_size is 8; supported is None"),
        (("text_config", "max_position_embeddings"), 2, "supported is more than 2"),
    ],
)
def test_towers_that_a_dual_encoder_cannot_have_here(copy, keys, value, message):
    path = copy("dual_encoder")
    edit(path, "config.json", *keys, value=value)
    with pytest.raises(WeightFileError, match=message):
        read(path)


def test_a_length_that_is_the_tables_own_is_no_choice(copy):
    path = copy("chinese_clip")
    edit(path, "config.json", "text_config", "max_position_embeddings", value=60)
    name = "text_model.embeddings.position_embeddings.weight"
    tensors = load(path)
    save_tensors(path / "model.safetensors", {**tensors, name: np.resize(tensors[name], (60, 24))})
    for length, found in ((40, 40), (60, 52), (10**30, 52)):
        edit(path, "tokenizer_config.json", "model_max_length", value=length)
        assert read(path).spec["text"]["context_length"] == found


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_the_image_processor(directories, case):
    path, golden, _ = directories[case]
    spec = read(path).spec
    rules, process = spec["preprocess"], Preprocess.from_spec(spec)
    pixels = np.stack([process(picture(*size)) for size in PICTURES])
    mean, std = np.float32(rules["mean"]), np.float32(rules["std"])
    found = (pixels.astype(np.float32) / 255 - mean) / std  # as normalise_images on the device
    assert np.abs(found.transpose(0, 3, 1, 2) - golden["pixels"]).max() <= 1e-6


def test_siglip_2_of_any_aspect(copy, tmp_path):
    path = copy("siglip")
    edit(path, "config.json", "model_type", value="siglip2")
    config = json.loads((path / "config.json").read_text())
    del config["vision_config"]["image_size"]
    config["vision_config"]["num_patches"] = 16
    (path / "config.json").write_text(json.dumps(config))
    rules = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8}
    (path / "preprocessor_config.json").write_text(json.dumps({**rules, "max_num_patches": 20}))
    tensors = load(path)
    name = "vision_model.embeddings.patch_embedding.weight"
    kernel = tensors[name]
    tensors[name] = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    save_tensors(path / "model.safetensors", tensors)
    weights = read(path)
    ours = weights.leaves["image_encoder/patch_kernel"].read()
    np.testing.assert_array_equal(ours, kernel.transpose(2, 3, 1, 0))
    assert weights.spec["image"]["position_side"] == 4
    assert weights.spec["preprocess"]["max_patches"] == 20
    hugging_face.write(tmp_path / "b", weights)
    assert read(tmp_path / "b").spec == weights.spec
    written = load(tmp_path / "b")
    assert all(np.array_equal(written[n], x) for n, x in tensors.items())
    edit(path, "preprocessor_config.json", "patch_size", value=16)
    with pytest.raises(WeightFileError, match=r"patch_size is 16; supported is 8"):
        read(path)
    edit(path, "config.json", "vision_config", "num_patches", value=15)
    with pytest.raises(WeightFileError, match=r"num_patches is 15; supported is the square"):
        read(path)


C, P, T = "config.json", "preprocessor_config.json", "tokenizer_config.json"
WRONG = [
    ("clip", C, ("model_type",), "bert", r"config.json.model_type is 'bert'; supported are clip"),
    ("clip", P, ("image_processor_type",), "Siglip2ImageProcessor", r"image_processor_type is"),
    ("clip", C, ("model_type",), "clip_text_model", r"a text tower alone"),
    ("clip", C, ("text_config",), [1], r"text_config is \[1\], expected an object"),
    ("clip", C, ("text_config", "hidden_act"), "relu", r"hidden_act is 'relu'; .*'quick_gelu'"),
    ("clip", C, ("text_config", "hidden_size"), "24", r"hidden_size is '24'; .* an integer"),
    ("clip", C, ("text_config", "hidden_size"), True, r"hidden_size is True"),
    ("clip", C, ("text_config", "num_attention_heads"), 5, r"num_attention_heads is 5; .* divis"),
    (
        "clip",
        C,
        ("text_config", "eos_token_id"),
        7,
        r"eos_token_id is 7, the tokenizer ends with 49407",
    ),
    ("clip", C, ("text_config", "layer_norm_eps"), -1.0, r"layer_norm_eps is -1.0"),
    ("clip", C, ("text_config", "rope_theta"), 1.0, r"text_config.rope_theta = 1.0 is not a field"),
    ("clip", C, ("vision_config", "num_channels"), 4, r"num_channels is 4; supported is 3"),
    ("clip", C, ("vision_config", "image_size"), 40, r"gives 32 pixels, .*image_size is 40"),
    ("clip", C, ("projection_dim",), 24, r"projection.weight has shape \(20, .*takes \(24, "),
    ("clip", C, ("text_config", "vocab_size"), 50000, r"weight has shape .49408, 24.*.50000, 24"),
    ("clip", C, ("text_config", "eos_token_id"), 50000, r"eos_token_id is 50000; .*below .*49408"),
    ("clip", C, ("text_config", "eos_token_id"), 49405, r"is 49405, the tokenizer ends with 49407"),
    ("clip", C, ("text_config",), {"eos_token_id": 2, "vocab_size": 50}, r"50, the tokenizer has"),
    ("clip", P, ("resample",), 0, r"resample is 0; supported is 3 or 2"),
    ("clip", P, ("do_center_crop",), False, r"do_center_crop is False"),
    ("clip", P, ("crop_size",), 40, r"crop_size is 40; supported is .* at most size: 32"),
    ("clip", P, ("crop_size",), 28, r"gives 28 pixels, .*image_size is 32"),
    ("clip", P, ("size",), {"longest_edge": 32}, r"size is .*supported is .*shortest_edge"),
    ("clip", P, ("do_rescale",), False, r"do_rescale is False"),
    ("clip", P, ("rescale_factor",), 0.5, r"rescale_factor is 0.5; supported is 1 / 255"),
    ("clip", P, ("image_mean",), [0.5], r"image_mean is \[0.5\]; .* three numbers"),
    ("clip", P, ("image_processor_type",), "ViT", r"image_processor_type is 'ViT'"),
    ("siglip", C, ("vision_config", "vision_use_head"), False, r"vision_use_head is False"),
    (
        "siglip",
        C,
        ("text_config", "projection_size"),
        24,
        r"projection_size is 24; supported is 32",
    ),
    ("siglip", T, ("pad_token",), "<none>", r"pad_token is '<none>': spiece.model has no such"),
    ("siglip", C, ("text_config", "vocab_size"), 200, r"vocab_size is 200, the tokenizer has 300"),
    ("align", C, ("vision_config", "depthwise_padding"), [5], r"depthwise_padding is \[5\]"),
    ("align", C, ("vision_config", "batch_norm_eps"), 1e-5, r"batch_norm_eps is 1e-05"),
    ("align", C, ("text_config", "pad_token_id"), 3, r"pad_token_id is 3, the tokenizer pads with"),
    ("align", P, ("include_top",), True, r"include_top is True"),
]


@pytest.mark.parametrize("case, file, keys, value, message", WRONG)
def test_what_is_not_supported_is_named(copy, case, file, keys, value, message):
    path = copy(case)
    edit(path, file, *keys, value=value)
    with pytest.raises(WeightFileError, match=message):
        read(path)


def paths_of(node, prefix=()):
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, key))


ODD = (None, [], {"a": 1}, "x", -1, float("nan"), True, 10**30, [[]])


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_anywhere_are_errors_of_the_file(directories, tmp_path, stride):
    """Every field of every JSON file takes odd values, in turns or all: it is read, or refused."""
    hugging_face.write(tmp_path / "b", read(directories["siglip"][0]))
    refused = 0
    for file in (C, P, T):
        text = (tmp_path / "b" / file).read_text()
        for number, keys in enumerate(paths_of(json.loads(text))):
            for value in ODD[number % stride :: stride]:
                edit(tmp_path / "b", file, *keys, value=value)
                try:
                    read(tmp_path / "b")
                except WeightFileError:
                    refused += 1
                (tmp_path / "b" / file).write_text(text)
    assert refused > 400 // stride
    read(tmp_path / "b")


def test_damaged_files_are_named(copy, directories):
    path = copy("clip")
    for content in ("", "[1]", "{", '{"a":' * 100_000, "\udcff"):
        (path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(WeightFileError, match=r"config.json"):
            read(path)
        assert not hugging_face.recognises(path)
    shutil.copy(directories["clip"][0] / "config.json", path)
    assert hugging_face.recognises(path) and not hugging_face.recognises(path / "config.json")
    tensors = {**directories["clip"][2]}
    tensors["other"] = tensors.pop("logit_scale")
    save_tensors(path / "model.safetensors", tensors)
    with pytest.raises(WeightFileError, match=r"missing: logit_scale\n.*of no use: other"):
        read(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(WeightFileError, match=r"holds no weights: expected model.safetensors or"):
        read(path)


def test_a_foreign_vocabulary_is_refused(directories, tmp_path):
    hugging_face.write(tmp_path / "b", read(directories["clip"][0]))
    merges = (tmp_path / "b" / "merges.txt").read_text().split("\n")
    merges[5], merges[6] = merges[6], merges[5]
    (tmp_path / "b" / "merges.txt").write_text("\n".join(merges))
    with pytest.raises(WeightFileError, match=r"merges.txt are not the 48894 merges"):
        read(tmp_path / "b")
    (tmp_path / "b" / "merges.txt").unlink()
    edit(tmp_path / "b", "vocab.json", "cat</w>", value=7)
    with pytest.raises(WeightFileError, match=r"vocab.json is not CLIP's vocabulary"):
        read(tmp_path / "b")
    (tmp_path / "b" / "vocab.json").unlink()
    assert read(tmp_path / "b").spec["tokenizer"] == {"name": "clip_bpe"}


@pytest.mark.parametrize("file", ["spiece.model", P])
def test_siglip_needs_its_own_files(copy, file):
    path = copy("siglip")
    (path / file).unlink()
    with pytest.raises(WeightFileError, match=r"has no tokenizer|has no preprocessor_config.json"):
        read(path)


@pytest.fixture
def without_vocabulary(directories, tmp_path):
    """A directory of SigLIP's 32,000 ids without spiece.model, and that file."""
    path = shutil.copytree(directories["siglip"][0], tmp_path / "bare")
    tensors = dict(directories["siglip"][2])
    name = "text_model.embeddings.token_embedding.weight"
    rows = np.random.default_rng(0).standard_normal((32_000, tensors[name].shape[1]))
    save_tensors(path / "model.safetensors", {**tensors, name: rows.astype(np.float32)})
    edit(path, "config.json", "text_config", "vocab_size", value=32_000)
    return path, (path / "spiece.model").rename(tmp_path / "vocabulary.model")


def test_a_directory_without_vocabulary_takes_it_from_the_flag(without_vocabulary, tmp_path):
    path, file = without_vocabulary
    bare = convert_weights(path, tmp_path / "images", "clipjax")
    assert bare.lacks_tokenizer
    with pytest.raises(ValueError, match="tokenizer=FILE"):
        load_tokenizer(open_checkpoint(tmp_path / "images").step_dir)(TEXTS)
    whole = convert_weights(path, tmp_path / "texts", "clipjax", tokenizer=file)
    assert not whole.lacks_tokenizer
    shutil.copy(file, path / "spiece.model")  # the control: the file in the directory says as much
    convert_weights(path, tmp_path / "wanted", "clipjax")
    found, wanted = (
        load_tokenizer(open_checkpoint(tmp_path / name).step_dir) for name in ("texts", "wanted")
    )
    np.testing.assert_array_equal(found(["a photo of"]), wanted(["a photo of"]))
    with pytest.raises(ValueError, match="is here already; leave it out"):
        convert_weights(path, tmp_path / "x", "clipjax", tokenizer=file)


def test_the_flag_takes_the_other_form_of_a_vocabulary(without_vocabulary, tmp_path):
    path, _ = without_vocabulary
    table = {f"w{i}": i for i in range(2, 50)} | {"<unk>": 0, "</s>": 1, "dog": 50}
    backend = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    convert_weights(path, tmp_path / "out", "clipjax", tokenizer=tmp_path / "tokenizer.json")
    ids = load_tokenizer(open_checkpoint(tmp_path / "out").step_dir)(["W7, a DOG"])[0]
    assert ids[:5].tolist() == [7, 0, 50, 1, 1]  # lower-cased, without the comma, as SigLIP's


TOKEN = "text_model.embeddings.token_embedding.weight"


def add_tokens(path, tensors, names, extra=0):
    """Rows for added tokens, and a legacy end that says which token is the end."""
    rows = np.random.default_rng(3).standard_normal((names + extra, 24)).astype(np.float32)
    save_tensors(
        path / "model.safetensors", {**tensors, TOKEN: np.concatenate([tensors[TOKEN], rows])}
    )
    edit(path, "config.json", "text_config", "vocab_size", value=49408 + names + extra)
    edit(path, "config.json", "text_config", "eos_token_id", value=49407)


def test_added_tokens_have_ids_and_texts_end_where_they_did(directories, copy, tmp_path):
    path = copy("clip")
    add_tokens(path, directories["clip"][2], 3, extra=5)
    decoder = {
        "49406": {"content": "<|startoftext|>", "special": True, "normalized": False},
        "49408": {"content": "<S1>", "special": True, "normalized": False},
        "49409": {"content": "<Dog>", "special": False, "normalized": True},
    }
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    legacy = {"<S1>": 49408, "<Dog>": 49409, "<S1>+": 49410}
    (path / "added_tokens.json").write_text(json.dumps(legacy))
    weights = read(path)
    spec = weights.spec
    assert spec["text"]["eot_id"] == 49407 and spec["text"]["vocab_size"] == 49416
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=16)
    plain = ClipBPE(context_length=16)
    a, cat, x = (plain([word])[0][1] for word in ("a", "cat", "x"))
    ids = tokenizer(["a<S1>Cat <dOG>x", "<s1>", "<S1>", "x <s1>+"])
    assert ids[0][:8].tolist() == [49406, a, 49408, cat, 49409, x, 49407, 0]
    assert ids[1].tolist() == plain(["<s1>"])[0].tolist()  # another case is another text
    assert ids[2][:4].tolist() == [49406, 49408, 49407, 0]
    assert 49410 in ids[3]  # of two tokens that begin at one place the longer one
    assert tokenizer.decode(ids[0]) == "a <S1> cat <Dog> x"
    assert tokenizer.vocab_size == 49411

    images, _ = inputs({**spec, "text": {**spec["text"], "context_length": 16}})
    tokens = tokenizer(["a<S1>Cat <dOG>x", "a cat", "<S1>", "x"])
    hidden = final_norm(weights, run(weights, images, tokens)[3][-1])
    ends = (tokens == 49407).argmax(axis=1)
    pooled = hidden[np.arange(4), ends] @ weights.leaves["text_projection/kernel"].read()
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    assert np.abs(run(weights, images, tokens)[1] - pooled).max() < 2e-6
    assert (tokens.argmax(axis=1) != ends).any()  # the control: the largest id is another place

    hugging_face.write(tmp_path / "b", read(cut(path, directories, tmp_path)))
    again = read(tmp_path / "b").spec
    assert again["text"]["eot_id"] == 49407
    assert again["tokenizer"]["added_tokens"] == spec["tokenizer"]["added_tokens"]


def cut(path, directories, tmp_path):
    """The directory with as many rows as ids."""
    path = shutil.copytree(path, tmp_path / "cut")
    add_tokens(path, directories["clip"][2], 3)
    return path


WRONG_TOKENS = {
    "a whole word": ({"49408": {"content": "<x>", "single_word": True}}, "as a whole word only"),
    "damaged": ({"x": {"content": "<x>"}}, "its added tokens are damaged"),
    "empty": ({"49408": {"content": " "}}, "is no added token"),
    "of the vocabulary": ({"7": {"content": "<x>"}}, "has the id 7, which is '\\(' in the vocab"),
    "beyond the rows": ({"49500": {"content": "<x>"}}, "49409, the tokenizer has 49501 ids"),
    "twice": ({"49408": {"content": "<x>"}, "49409": {"content": "<x>"}}, "two equal tokens"),
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
def test_added_tokens_that_do_not_fit(directories, copy, case):
    path = copy("clip")
    add_tokens(path, directories["clip"][2], 1)
    decoder, message = WRONG_TOKENS[case]
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(WeightFileError, match=message):
        read(path)


def test_added_tokens_of_two_files_that_differ(directories, copy):
    path = copy("clip")
    add_tokens(path, directories["clip"][2], 1)
    decoder = {"added_tokens_decoder": {"49408": {"content": "<x>"}}}
    (path / "tokenizer_config.json").write_text(json.dumps(decoder))
    (path / "added_tokens.json").write_text(json.dumps({"<y>": 49408}))
    with pytest.raises(WeightFileError, match="id 49408 is '<x>', another file has '<y>'"):
        read(path)


def test_hints_are_checked(directories):
    path = directories["clip"][0]
    assert read(directories["siglip"][0], activation="gelu_tanh").spec["name"] == "siglip"
    with pytest.raises(WeightFileError, match=r"activation='gelu': .* says gelu and quick_gelu"):
        read(path, activation="gelu")
    with pytest.raises(WeightFileError, match=r"is not ViT-B-32: it has embed_dim 20, not 512"):
        read(path, model="ViT-B-32")


CANNOT = {
    "RN50": r"image.name is 'modified_resnet', .*no tower of CLIPModel.*target_format='open_clip'",
    "ViT-H-14-CLIPA": r"transformers has no such model: .*SiglipModel|projection_size",
    "openvision-vit-tiny-patch16-160": r"image.* in SiglipModel it is .*target_format='clipjax'",
    "xlm-roberta-base-ViT-B-32": r"text.pooling is 'mean', in ChineseCLIPModel it is 'cls'",
    "siglip-so400m-16-256-i18n": r"text_projection is 'none', in SiglipModel it is 'linear_bias'",
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_transformers_cannot_hold_is_named_and_nothing_written(tmp_path, name):
    with pytest.raises(ValueError, match=CANNOT[name]):
        hugging_face.write(tmp_path / "b", Weights(MODELS[name], {}))
    assert not (tmp_path / "b").exists()


def test_changes_that_transformers_cannot_hold_are_named(directories, tmp_path):
    weights = read(directories["clip"][0])
    changes = {
        "image.pooling": ("image", {**weights.spec["image"], "pooling": "mean"}),
        "text.pooling": ("text", {**weights.spec["text"], "pooling": "last"}),
        "logit_bias": ("logit_bias", -10.0),
        "image_projection": ("image_projection", "mlp"),
    }
    for field, (key, value) in changes.items():
        with pytest.raises(ValueError, match=rf"transformers has no such model: {field} is"):
            hugging_face.write(tmp_path / "b", Weights({**weights.spec, key: value}, {}))


def test_every_row_is_written_or_refused():
    families = {name: refused_or_family(row) for name, row in MODELS.items()}
    assert {name for name, kind in families.items() if kind == "clip"} == {
        name
        for name in MODELS
        if name.startswith("ViT-") and not any(x in name for x in ("CLIPA", "worldwide"))
    }
    worldwide = {kind for name, kind in families.items() if "worldwide" in name}
    assert worldwide == {"metaclip_2"}
    assert families["align-base"] == "align" and families["siglip2-b-16-224"] == "siglip"
    assert families["siglip2-b-16-naflex"] == "siglip2"


def refused_or_family(row):
    try:
        return write_config(row)[0]
    except ValueError as error:
        assert "transformers has no such model" in str(error)
        return None
