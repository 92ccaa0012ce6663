"""Files whose tensors carry other names: wrapped, renamed, split, twice in one file."""

import shutil

import numpy as np
import pytest
from naming_case import open_clip_tensors, run_all, save, save_torch
from small_weights import assert_same, leaves_of

from clipjax.inference import Model
from clipjax.interop.converting import convert_weights

QUICK = "--activation=quick_gelu"


def prefixed(tensors, prefix):
    return {prefix + name: x for name, x in tensors.items()}


def tiny_clip(tensors, inner=""):
    parts = {"visual.": "_image_encoder.", "logit_": "_logit_scale."}

    def name_of(name):
        part = next((parts[k] for k in parts if name.startswith(k)), "_text_encoder.")
        return part + inner + name

    return {name_of(name): x for name, x in tensors.items()}


def long_clip(tensors):
    """The first 20 positions are right in one table, the others in the other."""
    table = tensors["positional_embedding"]
    first, second = np.full_like(table, 7), np.full_like(table, 8)
    first[:20], second[20:] = table[:20], table[20:]
    return {**tensors, "positional_embedding": first, "positional_embedding_res": second}


def with_head(tensors):
    return {**tensors, "head.weight": np.zeros((3, 3), np.float32)}


def without(tensors, *names):
    return {name: x for name, x in tensors.items() if name not in names}


PLAIN = open_clip_tensors()
RENAMED = {n.replace("visual.transformer.", "visual.encoder."): x for n, x in PLAIN.items()}
# case: tensors, flags, what is printed
READ = {
    "plain": (PLAIN, [], ""),
    "ddp": (prefixed(PLAIN, "module."), [], "'module.' taken off all 50 names"),
    "compiled": (prefixed(PLAIN, "_orig_mod.module.model."), [], "'_orig_mod.' taken off"),
    "clipmodel": (prefixed(PLAIN, "model.clipmodel."), [], "'clipmodel.' taken off all"),
    "tiny_clip": (tiny_clip(PLAIN), [], "TinyCLIP's _image_encoder, _text_encoder"),
    "tiny_clip_ddp": (prefixed(tiny_clip(PLAIN, "module."), "module."), [], "TinyCLIP's"),
    "long_clip": (long_clip(PLAIN), [], "20 rows of positional_embedding, the other 4 of"),
    "strip": (prefixed(PLAIN, "net.clip."), ["--strip_prefix=net.clip."], "'net.clip.' taken"),
    "strip_known": (prefixed(PLAIN, "module."), ["--strip_prefix=module."], "'module.' taken"),
    "ignored": (with_head(PLAIN), ["--ignore=^head\\."], "ignored: head.weight"),
    "ignored_then_stripped": (
        {**prefixed(PLAIN, "module."), "head.weight": np.zeros(3, np.float32)},
        ["--ignore=^head"],
        "'module.' taken off all",
    ),
    "renamed": (RENAMED, ["--rename=^(visual)\\.encoder=>\\1.transformer"], ""),
    "renamed_twice": (
        {f"x.{n}": x for n, x in RENAMED.items()},
        ["--rename=^x.=>", "--rename=encoder=>transformer"],
        "",
    ),
}
# case: tensors, flags, the error
REFUSED = {
    "no_such_prefix": (
        PLAIN,
        ["--strip_prefix=net."],
        "--strip_prefix net.: no name starts with it; names look like",
    ),
    "prefix_of_some": (
        {**prefixed(without(PLAIN, "ln_final.bias"), "net."), "ln_final.bias": np.zeros(16)},
        [],
        "with names of none of the formats",
    ),
    "prefix_twice": (
        {**PLAIN, "net.logit_scale": np.zeros(())},
        ["--strip_prefix=net."],
        "--strip_prefix net. gives two tensors the name 'logit_scale'",
    ),
    "rename_without_effect": (PLAIN, ["--rename=^image=>visual"], "--rename: '^image' changes no"),
    "rename_to_one": (PLAIN, ["--rename=^ln_final.*=>x"], "gives two leaves the name 'x'"),
    "rename_is_no_pair": (PLAIN, ["--rename=visual"], "expected PATTERN=>NAME"),
    "rename_is_no_pattern": (PLAIN, ["--rename=(=>x"], "--rename: '(' is no regular expression"),
    "rename_without_group": (PLAIN, ["--rename=^ln=>\\1"], "'\\\\1' cannot replace '^ln'"),
    "ignore_without_effect": (PLAIN, ["--ignore=head"], "--ignore: 'head' matches no leaf"),
    "ignore_all": (PLAIN, ["--ignore=."], "--ignore leaves nothing of"),
    "left_over": (with_head(PLAIN), [], "of no use: head.weight (--ignore leaves tensors out"),
    "missing": (without(PLAIN, "ln_final.bias"), [], "missing: ln_final.bias"),
    "shape": (
        {**prefixed(PLAIN, "module."), "module.ln_final.bias": np.zeros(17, np.float32)},
        [],
        "ln_final.bias has shape (17,), the model takes (16,)",
    ),
    "tiny_clip_and_more": (with_head(tiny_clip(PLAIN)), [], "of none of the formats"),
    "long_clip_of_two_lengths": (
        {**PLAIN, "positional_embedding_res": np.zeros((23, 16), np.float32)},
        [],
        "positional_embedding, should have its shape and is (24, 16)",
    ),
    "long_clip_alone": (
        {
            **without(PLAIN, "positional_embedding"),
            "positional_embedding_res": PLAIN["positional_embedding"],
        },
        [],
        "the first, positional_embedding, should have its shape and is missing",
    ),
    "from_text": (PLAIN, ["--from_text=."], "--from_text completes a directory of Hugging Face's"),
    "logit_scale": (PLAIN, ["--logit_scale=3"], "--logit_scale is for two towers (--from_text)"),
    "which_of_one": (PLAIN, ["--which=ema"], "holds one set of weights; leave it out"),
}
SETS = "holds 2 sets of weights; choose with --which: "


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Every case's exit code, stdout and stderr; one process runs all commands."""
    folder = tmp_path_factory.mktemp("names")
    commands = {}
    for case, (tensors, flags, _) in {**READ, **REFUSED}.items():
        file = save(folder / f"{case}.safetensors", tensors)
        commands[case] = [f"--from={file}", QUICK, *flags]
    average = open_clip_tensors(seed=1)
    optimizer = {"state": {0: {"exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1}]}
    more = {"epoch": 3, "optimizer": optimizer, "loss": {"weights": np.ones(3, np.float32)}}
    two = {"state_dict": PLAIN, "state_dict_ema": prefixed(average, "module."), **more}
    with pytest.MonkeyPatch.context() as patch:
        file = save_torch(folder / "two.pt", two, patch)
        nested = save_torch(folder / "nested.pt", {"ema": {"model": average}, "x": PLAIN}, patch)
        one = save_torch(folder / "one.pt", {"net": PLAIN, **more}, patch)
    commands["two"] = [f"--from={file}", QUICK]
    for key in ("state_dict", "state_dict_ema", "optimizer"):
        commands[f"two_{key}"] = [f"--from={file}", QUICK, f"--which={key}"]
    commands["nested"] = [f"--from={nested}", QUICK, "--which=ema.model"]
    commands["one"] = [f"--from={one}", QUICK]
    commands["again"] = [f"--from={folder}/out/plain"]
    commands["ours"] = [f"--from={folder}/out/plain", "--ignore=x", "--rename=a=>b"]
    results = run_all(folder, commands)
    return folder / "out", results, average


@pytest.mark.parametrize("case", READ)
def test_a_file_under_other_names_is_the_same_model(done, case):
    folder, results, _ = done
    code, out, err = results[case]
    assert code == 0, err
    assert READ[case][2] in out
    assert_same(leaves_of(folder / case), leaves_of(folder / "plain"))


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_do_not_fit_are_one_error(done, case):
    folder, results, _ = done
    code, out, err = results[case]
    assert code == 1 and out == "" and "Traceback" not in err
    error = err[err.index("clipjax convert: ") :]  # before it, what the file was taken for
    assert REFUSED[case][2] in error
    assert not list(folder.glob(f"*{case}")), "nothing is written"


def test_two_sets_of_weights_are_named_and_one_is_chosen(done):
    folder, results, average = done
    code, out, err = results["two"]
    assert (code, out) == (1, "")
    assert SETS + "state_dict (50 tensors), state_dict_ema (50 tensors)\n" in err
    plain = leaves_of(folder / "plain")
    assert_same(leaves_of(folder / "two_state_dict"), plain)
    chosen = leaves_of(folder / "two_state_dict_ema")
    assert chosen["logit_scale"] == average["logit_scale"] != plain["logit_scale"]
    assert "taken: the weights under 'state_dict_ema'" in results["two_state_dict_ema"][1]
    assert "the sets of weights are state_dict (50" in results["two_optimizer"][2]
    assert not (folder / "two_optimizer").exists()
    assert_same(leaves_of(folder / "nested"), chosen)
    assert_same(leaves_of(folder / "one"), plain)


def test_the_step_that_was_taken_is_said(done):
    folder, results, _ = done
    step = f"taken: step 0 of {folder / 'plain' / 'checkpoints'}\n"
    assert results["again"][0] == 0 and step in results["again"][1]
    code, _, err = results["ours"]
    assert code == 1 and "whose names are its own; leave --rename, --ignore out" in err


def test_a_newer_step_that_cannot_be_used_is_said(done, tmp_path, caplog):
    """By whoever opens a checkpoint; here by the encoder, which `classify` is, and by convert."""
    run = shutil.copytree(done[0] / "plain", tmp_path / "run")
    (run / "checkpoints" / "3.damaged").mkdir()
    (run / "checkpoints" / "5").mkdir()
    said = (
        f"step 0 of {run / 'checkpoints'} is used, and newer ones are not: 3.damaged: it was found "
        "damaged; 5: its save is not finished (no manifest.json)"
    )
    converted = convert_weights(run, tmp_path / "copy", "clipjax")
    assert converted.notes == (f"step 0 of {run / 'checkpoints'}", said)
    with caplog.at_level("WARNING"):
        Model.from_checkpoint(run)
    assert said in caplog.messages
