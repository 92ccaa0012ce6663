"""Unmerged LoRA: added to the weights exactly as W + scale * B A, or one error."""

import json
import math
import shutil

import numpy as np
import pytest
from hugging_face_case import make_directory, save_tensors
from naming_case import run_all
from small_weights import assert_same, leaves_of

QUERY, VALUE, MLP, PATCH, WORDS = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.self_attn.v_proj",
    "vision_model.encoder.layers.0.mlp.fc1",
    "vision_model.embeddings.patch_embedding",
    "text_model.embeddings.token_embedding",
)
RANKS = {QUERY: 2, VALUE: 3, MLP: 2, PATCH: 2, WORDS: 2}
TRAINED = "vision_model.post_layernorm.bias"  # a layer that the adapter holds whole
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 12,
    "rank_pattern": {"1.self_attn.v_proj": 3},
    "alpha_pattern": {"vision_model.*fc1": 7.0},
    "target_modules": ["q_proj", "v_proj"],
    "use_dora": False,
    "use_rslora": False,
    "lora_dropout": 0.1,
    "init_lora_weights": True,
}
SCALES = {QUERY: 6.0, VALUE: 4.0, MLP: 3.5, PATCH: 6.0, WORDS: 6.0}


def factors(tensors, ranks=RANKS):
    """Layer -> (A, B) of the shapes that peft gives a linear layer, a convolution, an embedding."""
    random, found = np.random.default_rng(5), {}
    for layer, rank in ranks.items():
        shape = tensors[f"{layer}.weight"].shape
        shapes = (rank, *shape[1:]), (shape[0], rank) + (1, 1) * (len(shape) == 4)
        if layer == WORDS:
            shapes = (rank, shape[0]), (shape[1], rank)
        found[layer] = tuple(0.1 * random.standard_normal(s).astype(np.float32) for s in shapes)
    return found


def added(tensors, pairs, scales):
    """W + scale * B A, in float64 and rounded once."""
    found = dict(tensors)
    for layer, (a, b) in pairs.items():
        a, b, w = (x.astype(np.float64) for x in (a, b, tensors[f"{layer}.weight"]))
        delta = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
        delta = delta.T if layer == WORDS else delta.reshape(w.shape)
        found[f"{layer}.weight"] = (w + scales[layer] * delta).astype(np.float32)
    return found


def named(pairs, prefix="base_model.model.", adapter="", weight=".weight"):
    found = {}
    for layer, (a, b) in pairs.items():
        kind = "embedding_" if layer == WORDS else ""
        end = adapter if kind else adapter + weight
        found[f"{prefix}{layer}.lora_{kind}A{end}"] = a
        found[f"{prefix}{layer}.lora_{kind}B{end}"] = b
    return found


def in_peft(tensors, pairs, adapter=".default"):
    """The whole state dict of a PeftModel."""
    wrapped = {}
    for name, x in tensors.items():
        layer, _, last = name.rpartition(".")
        inner = f"{layer}.base_layer.{last}" if layer in pairs else name
        wrapped[f"base_model.model.{inner}"] = x
    original = wrapped.pop(f"base_model.model.{TRAINED}")
    layer, _, last = TRAINED.rpartition(".")
    wrapped[f"base_model.model.{layer}.original_module.{last}"] = original
    wrapped[f"base_model.model.{layer}.modules_to_save.default.{last}"] = original + 1
    return {**wrapped, **named(pairs, adapter=adapter)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    _, tensors = make_directory(folder / "base", "clip")
    pairs = factors(tensors)
    same_rank = factors(tensors, dict.fromkeys(RANKS, 2))
    trained = tensors[TRAINED] + 1
    commands = {}

    def directory(name, content):
        path = shutil.copytree(folder / "base", folder / name)
        save_tensors(path / "model.safetensors", content)
        return path

    def adapter(name, content, config=CONFIG):
        path = folder / name
        path.mkdir()
        save_tensors(path / "adapter_model.safetensors", content)
        if config is not None:
            (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    def convert(name, source, *flags):
        commands[name] = [f"--from={source}", *flags]

    wanted = added(tensors, pairs, SCALES)
    convert("wanted", directory("merged", wanted))
    convert("wanted_whole", directory("merged_whole", {**wanted, TRAINED: trained}))
    six = added(tensors, same_rank, dict.fromkeys(RANKS, 6.0))
    convert("wanted_six", directory("merged_six", six))
    root = added(tensors, same_rank, dict.fromkeys(RANKS, 12 / math.sqrt(2)))
    convert("wanted_root", directory("merged_root", root))

    base = folder / "base"
    convert("adapter", base, f"--lora={adapter('a', named(pairs))}")
    whole = {**named(pairs), f"base_model.model.{TRAINED}": trained}
    convert("adapter_whole", base, f"--lora={adapter('a_whole', whole)}")
    path = directory("in_peft", in_peft(tensors, pairs))
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    convert("peft", path)
    loralib = {**tensors, **named(same_rank, prefix="", weight="")}
    convert("loralib", directory("loralib", loralib), "--lora_alpha=12")
    plain = {**CONFIG, "rank_pattern": {}, "alpha_pattern": {}}
    rooted = adapter("a_root", named(same_rank), {**plain, "use_rslora": True})
    convert("root", base, f"--lora={rooted}")
    wrapped = {f"module.{k}": x for k, x in loralib.items()}
    convert("wrapped", directory("wrapped", wrapped), "--lora_alpha=12")

    convert("no_alpha", directory("no_alpha", loralib))
    convert("no_alpha_adapter", base, f"--lora={adapter('a_none', named(pairs), None)}")
    convert("alpha_twice", base, f"--lora={folder / 'a'}", "--lora_alpha=3")
    convert("alpha_alone", base, "--lora_alpha=3")
    convert("alpha_zero", folder / "no_alpha", "--lora_alpha=0")
    convert("both", folder / "loralib", f"--lora={folder / 'a'}")
    convert("adapter_as_source", folder / "a" / "adapter_model.safetensors")
    convert("no_adapter", base, f"--lora={folder / 'merged' / 'model.safetensors'}")
    convert("no_file", base, f"--lora={folder / 'out'}")
    convert("rank", base, f"--lora={adapter('a_rank', named(pairs), plain)}")
    for field, value in (("use_dora", True), ("init_lora_weights", "pissa"), ("peft_type", "IA3")):
        odd = adapter(f"a_{field}", named(pairs), {**CONFIG, field: value})
        convert(field, base, f"--lora={odd}")
    slow = adapter("a_slow", named(pairs), {**CONFIG, "alpha_pattern": {"(a+)+x": 1}})
    convert("slow", base, f"--lora={slow}")
    odd = dict(named(pairs))
    odd[f"base_model.model.{QUERY}.lora_magnitude_vector"] = np.ones(3, np.float32)
    convert("dora", base, f"--lora={adapter('a_dora', odd)}")
    one = named(pairs)
    del one[f"base_model.model.{QUERY}.lora_B.weight"]
    convert("alone", base, f"--lora={adapter('a_alone', one)}")
    two = {**named(pairs, adapter=".x"), **named(pairs, adapter=".y")}
    convert("two", base, f"--lora={adapter('a_two', two)}")
    bad = {QUERY: (pairs[QUERY][0][:, :5], pairs[QUERY][1])}
    convert("shape", base, f"--lora={adapter('a_shape', named(bad))}")
    lost = {"text_model.nothing": pairs[QUERY]}
    convert("lost", base, f"--lora={adapter('a_lost', named(lost))}")
    more = {**named(pairs), "base_model.model.classifier.weight": np.ones(3, np.float32)}
    convert("more", base, f"--lora={adapter('a_more', more)}")
    return folder / "out", run_all(folder, commands)


SAME = {
    "adapter": ("wanted", "LoRA of 5 layers added, scale 3.5, 4, 6, of"),
    "adapter_whole": ("wanted_whole", "1 tensors of it replace those of the weights"),
    "peft": ("wanted_whole", "LoRA of 5 layers added, scale 3.5, 4, 6\n"),
    "loralib": ("wanted_six", "LoRA of 5 layers added, scale 6\n"),
    "wrapped": ("wanted_six", "taken: 'module.' taken off all"),
    "root": ("wanted_root", "scale 8.48528, of"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_differences_are_added_exactly(done, case):
    folder, results = done
    code, out, err = results[case]
    assert code == 0, err
    other, said = SAME[case]
    assert said in out
    assert_same(leaves_of(folder / case), leaves_of(folder / other))


def test_the_sums_differ(done):
    """The control: another scale, or a layer less, is another model."""
    folder, _ = done
    kernels = [
        leaves_of(folder / case)["image_encoder/transformer/block_0/mlp/fc/kernel"]
        for case in ("wanted", "wanted_six", "wanted_root")
    ]
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert np.abs(a - b).max() > 1e-3


def test_the_adapter_is_in_the_record(done):
    assert "SHA-256 of adapter_model.safetensors: " in done[1]["adapter"][1]
    assert "SHA-256 of model.safetensors: " in done[1]["adapter"][1]


NO_ALPHA = "and no adapter_config.json beside it says their alpha, by which they are scaled: add "
REFUSED = {
    "no_alpha": "holds LoRA of 5 layers (rank 2), " + NO_ALPHA + "--lora_alpha NUMBER",
    "no_alpha_adapter": "holds LoRA of 5 layers (rank 2, 3), " + NO_ALPHA,
    "alpha_twice": "adapter_config.json says 12; leave it out",
    "alpha_alone": "model.safetensors holds no lora_A and lora_B",
    "alpha_zero": "--lora_alpha 0.0: expected a positive number",
    "both": "the file holds LoRA's factors itself, beside those of --lora; merge those first",
    "adapter_as_source": "give the weights as --from and the adapter as --lora",
    "no_adapter": "model.safetensors: it holds no lora_A and lora_B",
    "no_file": "it holds none of adapter_model.safetensors, adapter_model.bin",
    "rank": "v_proj has LoRA of rank 3, ",
    "use_dora": "use_dora = True is not a field that is known here",
    "init_lora_weights": "init_lora_weights is 'pissa'; supported is true, or a start",
    "peft_type": "peft_type is 'IA3'; supported is 'LORA'",
    "slow": "alpha_pattern holds '(a+)+x'; names of layers are read, and patterns of",
    "dora": "it is DoRA's, which is not supported; merge it in peft",
    "alone": f"{QUERY} has lora_A alone",
    "two": "it holds several adapters (x, y)",
    "shape": "q_proj.weight has shape (",
    "lost": "has lora_A and lora_B of text_model.nothing, whose weights are not there",
    "more": "classifier.weight of shape (3,); in the weights it is missing",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_added_is_one_error(done, case):
    folder, results = done
    code, out, err = results[case]
    assert code == 1 and out == "" and "Traceback" not in err, err
    assert REFUSED[case] in err and err.count("\n") == 1
    assert not list(folder.glob(f"*{case}")), "nothing is written"
