"""`clipjax convert`: there and back bit for bit, or one error and nothing written."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from config_files import shipped
from small_weights import assert_same, noise, read_checkpoint, small
from vocabularies import WORDS, sentencepiece_model

from clipjax.checkpoint import (
    CheckpointManager,
    MissingTokenizer,
    load_model_state,
    load_params,
    load_tokenizer,
    load_variables,
    make_contract,
    open_checkpoint,
    read_manifest,
    verify_files,
)
from clipjax.config import merge
from clipjax.evaluate import evaluate_checkpoint
from clipjax.inference import Model
from clipjax.interop import (
    Hints,
    WeightFileError,
    Weights,
    convert,
    converting,
    expected_shapes,
    export,
)
from clipjax.interop.converting import convert_weights
from clipjax.interop.formats import FORMATS
from clipjax.interop.open_clip import leaves as open_clip_leaves
from clipjax.interop.tensors import LazyTensor, of_array
from clipjax.models.layers_layout import stack_layers
from clipjax.tokenizers import make_tokenizer
from clipjax.train_state import TrainState
from clipjax.trees import flatten_with_names, unflatten_names

ROOT = Path(__file__).parent.parent.parent
CLIP = small(
    "ViT-B-32-quickgelu",
    embed_dim=24,
    image_size=32,
    image={"patch_size": 16, "depth": 3, "num_heads": 2, "mlp_dim": 64},
    text={"depth": 2, "num_heads": 2, "mlp_dim": 40, "context_length": 9},
)
RESNET = {
    **merge(CLIP, {"image_projection": "none"}),
    "image": {
        "name": "modified_resnet",
        "layers": [1, 1, 1, 1],
        "width": 4,
        "num_heads": 2,
        "output_dim": 24,
    },
}
SIGLIP = small(
    "siglip-b-16-224",
    embed_dim=16,
    image_size=32,
    image={"depth": 2, "num_heads": 2, "mlp_dim": 32},
    text={"depth": 2, "num_heads": 2, "mlp_dim": 32, "vocab_size": 64},
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    path.write_bytes(sentencepiece_model())
    return path


def weights_of(spec, vocabulary=None, **changes):
    files = {}
    if spec["tokenizer"]["name"] == "sentencepiece" and vocabulary is not None:
        tokenizer = {**spec["tokenizer"], "model": vocabulary.name, "end_id": 2, "pad_id": 2}
        spec, files = {**spec, "tokenizer": tokenizer}, {vocabulary.name: vocabulary}
    arrays = {**noise(spec), **changes}
    return Weights(spec, {name: of_array(x) for name, x in arrays.items()}, files, source="noise")


def write(tmp_path, weights, name="start"):
    FORMATS["clipjax"].write(tmp_path / name, weights)
    return tmp_path / name


def numbers(spec):
    """A spec without what a file cannot hold."""
    return {k: v for k, v in spec.items() if k not in ("name", "source")}


# There and back


@pytest.mark.parametrize(
    ("spec", "through"),
    [
        (CLIP, "open_clip"),
        (RESNET, "clipjax"),
        (SIGLIP, "hf"),
        pytest.param(CLIP, "clipjax", marks=pytest.mark.slow),
        pytest.param(CLIP, "hf", marks=pytest.mark.slow),  # test_hugging_face.py does it, too
        pytest.param(RESNET, "open_clip", marks=pytest.mark.slow),
        pytest.param(SIGLIP, "clipjax", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value["image"]["name"],
)
def test_there_and_back_is_bit_identical(tmp_path, vocabulary, spec, through):
    start = write(tmp_path, weights_of(spec, vocabulary))
    convert_weights(start, tmp_path / "there", through)
    done = convert_weights(tmp_path / "there", tmp_path / "back", "clipjax")
    assert done.source_format == through
    (spec_before, before), (spec_after, after) = (
        read_checkpoint(start),
        read_checkpoint(tmp_path / "back"),
    )
    assert_same(after, before)
    assert_same(before, noise(spec))
    assert done.parameters + done.statistics == sum(x.size for x in before.values())
    assert bool(done.statistics) == (spec is RESNET)
    towers = ("image", "text")
    found, wanted = numbers(spec_after), numbers(spec_before)
    for tower in towers:  # a field at its default may be said or not
        assert found.pop(tower).items() >= wanted.pop(tower).items()
    assert found == wanted
    first, second = (
        load_tokenizer(open_checkpoint(p).step_dir) for p in (start, tmp_path / "back")
    )
    assert first.contract() == second.contract()
    assert (first(WORDS) == second(WORDS)).all()


def test_what_is_written_twice_is_the_same(tmp_path):
    start = write(tmp_path, weights_of(CLIP))
    for name in ("a", "b"):
        convert_weights(start, tmp_path / name, "open_clip")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_one_file_for_open_clip(tmp_path):
    start = write(tmp_path, weights_of(CLIP))
    convert_weights(start, tmp_path / "out.safetensors", "open_clip")
    assert remains(tmp_path, "start") == ["out.safetensors"]
    convert_weights(start, tmp_path / "out", "open_clip")
    inside = tmp_path / "out" / "model.safetensors"
    assert (tmp_path / "out.safetensors").read_bytes() == inside.read_bytes()


# Our checkpoints


def save_training(directory, spec, *, ema=True):
    """A checkpoint as training writes it: packed, with an optimizer's state and an average."""
    leaves = noise(spec)
    state = {name: x for name, x in leaves.items() if not name.startswith("batch_stats/")}
    params = stack_layers(unflatten_names(state))
    statistics = {k: v for k, v in leaves.items() if k.startswith("batch_stats/")}
    zero = np.zeros((), np.int32)
    state = TrainState(
        step=zero + 7,
        params=jax.tree.map(lambda x: x + 1, params) if ema else params,
        opt_state={"mu": params},
        model_state=unflatten_names(statistics),
        ema_params=params if ema else None,
        skipped=zero,
        skipped_in_a_row=zero,
    )
    tokenizer = make_tokenizer(
        spec["tokenizer"], context_length=spec["text"]["context_length"]
    ).contract()
    metadata = {
        "config": {},
        "contract": make_contract(spec, tokenizer),
        "dataset_fingerprint": "x",
        "global_batch_size": 8,
        "seed": 0,
    }
    with CheckpointManager(directory / "checkpoints", metadata=metadata) as manager:
        manager.save(7, jax.device_put(state))
    return leaves


@pytest.mark.parametrize(
    ("spec", "ema"),
    [(CLIP, True), pytest.param(RESNET, False, marks=pytest.mark.slow)],
    ids=["vit", "resnet"],
)
def test_a_training_converts_as_it_is_evaluated(tmp_path, spec, ema):
    leaves = save_training(tmp_path / "run", spec, ema=ema)
    for target in ("open_clip", "clipjax"):
        done = convert_weights(tmp_path / "run", tmp_path / target, target)
        assert done.source_format == "clipjax"
    assert_same(read_checkpoint(tmp_path / "clipjax")[1], leaves)
    convert_weights(tmp_path / "open_clip", tmp_path / "back", "clipjax")
    assert_same(read_checkpoint(tmp_path / "back")[1], leaves)
    before = dict(flatten_with_names(load_variables(open_checkpoint(tmp_path / "run").step_dir)))
    after = dict(flatten_with_names(load_variables(open_checkpoint(tmp_path / "clipjax").step_dir)))
    assert_same(jax.tree.map(np.asarray, after), jax.tree.map(np.asarray, before))


def test_the_checkpoint_is_whole_and_says_what_it_is(tmp_path, vocabulary):
    step_dir = open_checkpoint(write(tmp_path, weights_of(SIGLIP, vocabulary))).step_dir
    assert step_dir == tmp_path / "start" / "checkpoints" / "0"
    manifest = read_manifest(step_dir)
    verify_files(step_dir, manifest.files)
    assert manifest.step == 0 and manifest.dataset_fingerprint == ""
    assert manifest.config["converted_from"] == "noise"
    assert manifest.contract["tokenizer"]["name"] == "sentencepiece"
    assert "tokenizer/spiece.model" in {file.path for file in manifest.files}
    assert str(vocabulary.parent) not in json.dumps(manifest.config)
    assert all(leaf.sha256 for leaf in manifest.leaves)
    assert all(leaf.name.startswith("params/") for leaf in manifest.leaves)
    stacks = [leaf for leaf in manifest.leaves if "/blocks/" in leaf.name]
    assert stacks and all(leaf.shape[0] == 2 for leaf in stacks)


def test_templates_of_the_run_stay_the_default(tmp_path):
    weights = dataclasses.replace(weights_of(CLIP), evals={"names": {"templates": ["one {}"]}})
    write(tmp_path, weights)
    convert_weights(tmp_path / "start", tmp_path / "copy", "clipjax")
    for path in (tmp_path / "start", tmp_path / "copy"):
        assert Model.from_checkpoint(path).prompts().templates == ("one {}",)
    convert_weights(tmp_path / "start", tmp_path / "theirs", "open_clip")
    convert_weights(tmp_path / "theirs", tmp_path / "back", "clipjax")  # its files hold none
    assert "default" in Model.from_checkpoint(tmp_path / "back").prompts().origin


def test_all_of_clipjax_takes_it(tmp_path):
    path = write(tmp_path, weights_of(CLIP))
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    encoder = Model.from_checkpoint(path)
    assert encoder.encode_text(["a dog"]).shape == (1, 24)
    assert encoder.encode_image([picture]).shape == (1, 24)
    assert len(encoder.classify([picture], ["cat", "dog"])[0]) == 2
    found = evaluate_checkpoint(path, zero_shot=["synthetic:8"], templates="plain", batch_size=8)
    assert found["step"] == 0 and 0 <= found["zero_shot/synthetic_8/top1"] <= 1


@pytest.mark.parametrize(
    ("spec", "patterns"),
    [
        (CLIP, {}),
        (RESNET, {}),
        (RESNET, {"drop": ("^text_projection/",), "initialise": ("^text_projection/",)}),
        (RESNET, {"drop": ("/bn1/",), "initialise": ("/bn1/",)}),
    ],
    ids=["vit", "resnet", "without a projection", "without a norm"],
)
def test_a_run_starts_from_it(tmp_path, spec, patterns):
    from clipjax.config import default_config
    from clipjax.experiment import resolve
    from clipjax.experiment.start import make_load_init

    path = write(tmp_path, weights_of(spec))
    config = default_config()
    config.init.checkpoint = str(path)
    config.init.update(patterns)
    config.model.name, config.data.source = "checkpoint", "synthetic:8"
    resolved = resolve(config)
    assert resolved.spec["image"].items() >= spec["image"].items()
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=9)
    load_init = make_load_init(resolved, make_contract(resolved.spec, tokenizer.contract()))
    loaded = {
        "params": load_params(open_checkpoint(path).step_dir),
        "model_state": load_model_state(open_checkpoint(path).step_dir),
    }
    # Put there and not computed: for each shape a function would compile.
    zeros = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), loaded))
    zero = jax.device_put(np.zeros((), np.int32))
    names = ("step", "opt_state", "ema_params", "skipped", "skipped_in_a_row")
    state, report = load_init(TrainState(**dict.fromkeys(names, zero), **zeros))
    expected = dict(flatten_with_names(loaded))
    dropped = [n for n in expected if any(p.strip("^") in n for p in patterns.get("drop", ()))]
    assert len(report.initialised) == len(report.ignored) == len(dropped)
    assert bool(loaded["model_state"]) == (spec is RESNET)
    found = {"params": state.params, "model_state": state.model_state}
    for name, value in flatten_with_names(found):
        wanted = 0 if name in dropped else np.asarray(expected[name])
        assert (np.asarray(value) == wanted).all(), name


def test_weights_without_their_vocabulary_take_images_only(tmp_path, vocabulary):
    start = write(tmp_path, weights_of(SIGLIP))
    tokenizer = load_tokenizer(open_checkpoint(start).step_dir)
    assert isinstance(tokenizer, MissingTokenizer)
    picture = np.zeros((32, 32, 3), np.uint8)
    encoder = Model.from_checkpoint(start)
    assert encoder.encode_image([picture]).shape == (1, 16)
    with pytest.raises(ValueError, match="tokenizer=FILE"):
        encoder.encode_text(["a dog"])
    done = convert_weights(start, tmp_path / "with", "clipjax", tokenizer=vocabulary)
    assert not done.lacks_tokenizer
    assert load_tokenizer(open_checkpoint(tmp_path / "with").step_dir)(WORDS).shape[0] == 4
    assert convert_weights(start, tmp_path / "without", "clipjax").lacks_tokenizer
    small = write(tmp_path, weights_of(merge(SIGLIP, {"text": {"vocab_size": 8}})), "small")
    with pytest.raises(ValueError, match="has 8: it is not its vocabulary"):
        convert_weights(small, tmp_path / "x", "clipjax", tokenizer=vocabulary)
    other = tmp_path / "other.model"
    other.write_bytes(vocabulary.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"not what .* was trained with|not a SentencePiece"):
        convert_weights(tmp_path / "with", tmp_path / "x", "clipjax", tokenizer=other)
    with pytest.raises(ValueError, match="no such file"):
        convert_weights(start, tmp_path / "x", "clipjax", tokenizer=tmp_path / "nothing")


# What does not fit


def test_every_difference_is_in_one_error():
    spec = CLIP
    table = open_clip_leaves(spec)
    tensors = export(table, {name: of_array(x) for name, x in noise(spec).items()})
    assert_same({name: x.read() for name, x in convert(table, tensors, spec).items()}, noise(spec))
    bent = dict(tensors)
    del bent["visual.proj"]
    bent["visual.extra"] = of_array(np.zeros(3, np.float32))
    bent["ln_final.bias"] = of_array(np.zeros(17, np.float32))
    bent["position_ids"] = of_array(np.arange(3))
    with pytest.raises(WeightFileError) as error:
        convert(table, bent, spec, where="x.pt", ignored=lambda name: name == "position_ids")
    lines = str(error.value).splitlines()
    assert lines == [
        "x.pt does not hold the weights of 'custom':",
        "  missing: visual.proj",
        "  of no use: visual.extra (ignore= leaves tensors out, rename= gives them other names)",
        "  ln_final.bias has shape (17,), the model takes (16,)",
    ]


def test_a_table_that_is_not_the_models_is_an_error():
    table = open_clip_leaves(CLIP)
    tensors = export(table, {name: of_array(x) for name, x in noise(CLIP).items()})
    with pytest.raises(ValueError, match="without a row image_projection/kernel"):
        convert([x for x in table if x.name != "image_projection/kernel"], tensors, CLIP)
    with pytest.raises(ValueError, match="stand twice"):
        convert([*table, table[0]], tensors, CLIP)


def test_nothing_is_read_before_the_check():
    def never():
        raise AssertionError("a tensor was read")

    table = open_clip_leaves(CLIP)
    tensors = {
        name: LazyTensor(x.shape, x.dtype, never)
        for name, x in export(table, weights_of(CLIP).leaves).items()
    }
    del tensors["visual.proj"]
    with pytest.raises(WeightFileError, match=r"missing: visual\.proj"):
        convert(table, tensors, CLIP)


def remains(tmp_path, *known):
    return sorted(set(os.listdir(tmp_path)) - set(known))


@pytest.mark.parametrize("target", ["clipjax", "open_clip", "hf"])
def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch, target):
    start = write(tmp_path, weights_of(CLIP))
    original = FORMATS["clipjax"].read
    reads = []

    def failing(path, hints):
        found = original(path, hints)

        def fail():
            reads.append(path)
            raise OSError(28, "No space left on device")

        leaves = dict(found.leaves)
        last = leaves["text_projection/kernel"]
        leaves["text_projection/kernel"] = LazyTensor(last.shape, last.dtype, fail)
        return dataclasses.replace(found, leaves=leaves)

    monkeypatch.setitem(FORMATS, "clipjax", dataclasses.replace(FORMATS["clipjax"], read=failing))
    with pytest.raises(OSError, match="No space"):
        convert_weights(start, tmp_path / "out", target)
    assert reads and remains(tmp_path, "start") == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, value):
    bad = np.zeros((24, 16), np.float32).T.copy()
    bad[3, 5] = value
    with pytest.raises(ValueError, match="text_projection/kernel holds NaN or infinity"):
        write(tmp_path, weights_of(CLIP, **{"text_projection/kernel": bad}))


def test_bad_arguments(tmp_path, monkeypatch):
    start = write(tmp_path, weights_of(CLIP))
    cases = [
        ((tmp_path / "no", "out", "clipjax"), {}, "no such file or directory"),
        ((start, "out", "onnx"), {}, "formats to write are clipjax, hf, open_clip"),
        ((start, "out", "big_vision"), {}, "formats to write are"),
        ((start, "start", "clipjax"), {}, "exists"),
        ((start, "no/where/out", "clipjax"), {}, "make it first"),
        ((start, "out", "clipjax"), {"hints": Hints("RN50")}, "leave model="),
        ((start, "out", "clipjax"), {"hints": Hints(None, "gelu")}, "leave model="),
        ((tmp_path, "out", "clipjax"), {}, "it holds start"),
    ]
    for (source, target, kind), options, message in cases:
        with pytest.raises(ValueError, match=message):
            convert_weights(source, tmp_path / target, kind, **options)
        assert remains(tmp_path, "start") == []
    usage = converting.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="no space for"):
        convert_weights(start, tmp_path / "out", "clipjax")
    assert remains(tmp_path, "start") == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    start = write(tmp_path, weights_of(CLIP))
    files = [path for path in (start / "checkpoints" / "0").rglob("*") if path.is_file()]
    random = np.random.default_rng(0)
    for path in random.choice(np.array(files, object), 25, replace=False):
        data = path.read_bytes()
        changed = bytearray(data)
        changed[random.integers(len(data))] ^= 1 << random.integers(8)
        for bad in (bytes(changed), data[:-1]):
            path.write_bytes(bad)
            with pytest.raises(WeightFileError):
                convert_weights(start, tmp_path / "out", "clipjax")
        path.write_bytes(data)
    assert remains(tmp_path, "start") == []
    convert_weights(start, tmp_path / "out", "clipjax")


# Files from elsewhere


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "nothing", 3, None])
@pytest.mark.parametrize("field", ["image", "text", "tokenizer"])
def test_a_spec_of_a_file_names_no_code(field, name):
    """A config may name a class of any module; a file from elsewhere may not."""
    spec = {**CLIP, field: {**CLIP[field], "name": name}}
    with pytest.raises(WeightFileError, match=rf"{field}\.name (is|=) "):
        expected_shapes(spec)


def test_a_checkpoint_that_names_code_is_refused(tmp_path):
    """The manifest is in order, as an attacker would take care of; what it says is not."""
    from clipjax.checkpoint import manifest as manifests

    start = write(tmp_path, weights_of(CLIP))
    step_dir = open_checkpoint(start).step_dir
    manifest = read_manifest(step_dir)
    contract = json.loads(json.dumps(manifest.contract))
    contract["model"]["image"] = {"name": "os:mkdir", "path": str(tmp_path / "canary")}
    manifests.write_manifest(step_dir, dataclasses.replace(manifest, contract=contract))
    with pytest.raises(ValueError, match=r"'os:mkdir'.*plugins="):
        convert_weights(start, tmp_path / "out", "clipjax")
    assert remains(tmp_path, "start") == []


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightFileError, match="neither a file nor a directory"):
        convert_weights(tmp_path / "pipe", tmp_path / "out", "clipjax")


@pytest.mark.parametrize(
    "content",
    [
        b"Dear reader",
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        b"",
        b"PK\x03\x04" + bytes(40),
        b"\x80\x02N.",
    ],
)
def test_foreign_files_are_one_error(tmp_path, content):
    for name in ("x.pt", "x.safetensors", "x.npz", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightFileError, match=name):
            convert_weights(tmp_path / name, tmp_path / "out", "clipjax")
        (tmp_path / name).unlink()
    assert remains(tmp_path) == []


def test_tensors_of_another_model_are_one_error(tmp_path):
    golden = Path(__file__).parent.parent / "golden" / "interop"
    for name in ("state_dict.pt", "training.pt", "torchscript.pt", "expected.npz"):
        with pytest.raises(ValueError):
            convert_weights(golden / name, tmp_path / "out", "clipjax")
    assert remains(tmp_path) == []


@pytest.mark.parametrize("target_format", ["hf", "open_clip"])
def test_a_model_that_others_lack_is_told_where_it_can_go(tmp_path, command, target_format):
    """The quickstart's: no class token, the mean of its patches."""
    start = write(tmp_path, weights_of(merge(CLIP, {"image": {"pooling": "mean"}})))
    out = tmp_path / "out"
    done = command("convert", "--from", start, "--to", out, "--format", target_format)
    assert done.code == 1 and not out.exists()
    assert done.err.strip().endswith("; --format stablehlo takes any model, as a program of JAX")
    assert "'mean'" in done.err


# The verb


def test_the_verb(tmp_path, command):
    start = write(tmp_path, weights_of(CLIP))

    done = command("convert", "--from", start, "--to", tmp_path / "out", "--format", "open_clip")
    assert done.code == 0, done.err
    assert "format: clipjax\nmodel: custom\n" in done.out
    assert f"parameters: {sum(x.size for x in noise(CLIP).values()):,}\n" in done.out
    assert "SHA-256 of manifest.json: " in done.out
    assert f"written as open_clip: {tmp_path / 'out'} (" in done.out
    done = command("convert", "--from", start, "--to", tmp_path / "out", "--format", "open_clip")
    assert done.code == 1 and done.out == ""
    assert done.err.strip() == (
        f"clipjax convert: {tmp_path / 'out'} exists; nothing is overwritten: give another path"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_the_quickstarts_model_leaves_for_others(kind, tmp_path):
    from clipjax.experiment import resolve

    spec = resolve(shipped("quickstart"), to_run=False).spec
    FORMATS[kind].write(tmp_path / "out", weights_of(spec))
    found = FORMATS[kind].read(tmp_path / "out", Hints())
    assert_same({name: x.read() for name, x in found.leaves.items()}, noise(spec))
