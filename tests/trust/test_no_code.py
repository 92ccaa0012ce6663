"""What is read from a checkpoint is never imported, unless a person has named its module.

Row S1 of tests/faults names functions in each part of a manifest, for each verb.
"""

import dataclasses
import hashlib
import shutil
import sys

import pytest

from clipjax import experiment
from clipjax.building import ANY_MODULE, build, check_plugins, resolve
from clipjax.checkpoint import check_resume, make_contract, read_manifest
from clipjax.config import default_config
from clipjax.inference import Model

VERBS = ("classify", "eval", "score", "convert", "finetune")

TOWERS = """
from pathlib import Path
from subprocess import getoutput

from clipjax.models.vit import VisionTransformer
from clipjax.tokenizers import ClipBPE

Path(__file__).with_name("imported").touch()


class MyViT(VisionTransformer):
    pass


class MyBPE(ClipBPE):
    def contract(self):
        return {**super().contract(), "name": "my_lab.towers:MyBPE"}
"""


def put(path, value):
    def change(fields):
        node = fields
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def test_the_same_checkpoint_is_taken_as_it_was_written(command, workdir, picture, tmp_path, kit):
    done = command(*kit.verbs(workdir, picture, tmp_path)["convert"])
    assert done.code == 0, done.err  # classify: below


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """A folder with a module of the user's own, which the command stands in."""
    folder = tmp_path / "desk"
    (folder / "my_lab").mkdir(parents=True)
    (folder / "my_lab" / "__init__.py").touch()
    (folder / "my_lab" / "towers.py").write_text(TOWERS)
    return folder


def forget(monkeypatch):
    for name in ("my_lab", "my_lab.towers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_plugin_is_imported_by_the_person_s_word_alone(
    command, original, my_lab, picture, tmp_path, kit, monkeypatch
):
    forget(monkeypatch)
    workdir = shutil.copytree(original, tmp_path / "run")
    spec = {**kit.spec["image"], "name": "my_lab.towers:MyViT"}
    kit.rewrite(workdir / "checkpoints" / "1", put(("contract", "model", "image"), spec))
    monkeypatch.chdir(my_lab)
    arguments = kit.verbs(workdir, picture, tmp_path)["classify"]
    done = command(*arguments)
    assert done.code == 1
    assert "--plugin my_lab.towers" in done.err
    assert not (my_lab / "my_lab" / "imported").exists()
    done = command(*arguments, "--plugin", "my_lab.towers,other")
    assert done.code == 0, done.err
    assert (my_lab / "my_lab" / "imported").exists()
    plain = command(*kit.verbs(original, picture, tmp_path)["classify"])
    assert done.out == plain.out  # it is the same tower
    forget(monkeypatch)


def test_another_source_of_a_plugin_is_a_warning(my_lab, kit, tmp_path, monkeypatch, caplog):
    forget(monkeypatch)
    monkeypatch.syspath_prepend(my_lab)
    allowed = ("my_lab",)
    spec = {
        **kit.spec,
        "name": "mine: the first",  # a label, whatever is in it
        "image": {**kit.spec["image"], "name": "my_lab.towers:MyViT"},
        "tokenizer": {"name": "my_lab.towers:MyBPE"},
    }
    step_dir = kit.write(tmp_path / "run", spec, plugins=allowed)
    contract = read_manifest(step_dir).contract
    source = my_lab / "my_lab" / "towers.py"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert contract["plugins"] == {"my_lab.towers:MyViT": digest, "my_lab.towers:MyBPE": digest}
    assert Model.from_checkpoint(step_dir, plugins=allowed).spec["image"] == spec["image"]
    assert "another source" not in caplog.text
    forget(monkeypatch)
    source.write_text(f"{TOWERS}\n# another day\n")
    Model.from_checkpoint(step_dir, plugins=allowed)
    for name in ("MyViT", "MyBPE"):
        assert caplog.text.count(f"another source of my_lab.towers:{name}") == 1
    metadata = {"config": {}, "dataset_fingerprint": "", "global_batch_size": 8, "seed": 0}
    now = make_contract(spec, contract["tokenizer"], plugins=allowed)
    assert now["plugins"] != contract["plugins"]
    manifest = dataclasses.replace(read_manifest(step_dir), config={})
    check_resume(manifest, {**metadata, "contract": now}, where="the workdir")
    assert "the workdir was made with another source" in caplog.text
    with pytest.raises(ValueError, match=r"plugins=\(\'my_lab"):
        Model.from_checkpoint(step_dir)
    forget(monkeypatch)


def test_a_config_trusts_what_it_names_and_no_more(my_lab, kit, tmp_path, monkeypatch):
    """A fine-tuning's model is the checkpoint's with changes of the config's."""
    forget(monkeypatch)
    monkeypatch.syspath_prepend(my_lab)
    image = {**kit.spec["image"], "name": "my_lab.towers:MyViT"}
    step_dir = kit.write(tmp_path / "run", {**kit.spec, "image": image}, plugins=("my_lab",))
    config = default_config()
    config.model.name, config.data.source = "checkpoint", "synthetic:8"
    config.init.checkpoint = str(step_dir)
    with pytest.raises(ValueError, match=r"plugins=\('my_lab\.towers',\)"):
        experiment.resolve(config)
    with config.unlocked():
        config.model.image.name = "my_lab.towers:MyViT"
    assert experiment.resolve(config).spec["image"]["name"] == "my_lab.towers:MyViT"
    # The same module, but another object of it than the config names.
    evil = {"name": "my_lab.towers:getoutput", "cmd": f"touch {tmp_path / 'canary'}"}
    kit.rewrite(step_dir, put(("contract", "model", "text"), {**kit.spec["text"], **evil}))
    with pytest.raises(ValueError, match=r"getoutput.*plugins="):
        experiment.resolve(config)
    config.plugins = ("my_lab",)
    with pytest.raises(ValueError, match=r"getoutput.*is defined in subprocess"):
        experiment.resolve(config)
    assert not (tmp_path / "canary").exists()
    config.plugins = ("subprocess",)
    with pytest.raises(ValueError, match=r"config\.plugins.*belongs to Python"):
        experiment.resolve(config)
    forget(monkeypatch)


def test_allowing_a_module_allows_what_it_defines(my_lab, monkeypatch):
    forget(monkeypatch)
    monkeypatch.syspath_prepend(my_lab)
    allowed = ("my_lab",)
    assert resolve("my_lab.towers:MyViT", {}, path="x", plugins=allowed).__name__ == "MyViT"
    for name in ("my_lab.towers:getoutput", "my_lab.towers:Path", "my_lab.towers:ClipBPE"):
        with pytest.raises(ValueError, match="is defined in"):
            resolve(name, {}, path="x", plugins=allowed)
        assert callable(resolve(name, {}, path="x", plugins=ANY_MODULE))  # a config is code
    with pytest.raises(ValueError, match="cannot be imported"):
        resolve("my_lab.towers:Absent", {}, path="x", plugins=allowed)
    forget(monkeypatch)


@pytest.mark.parametrize("name", ["os", "subprocess", "my lab", "", "a.", "../x", "*", "a:b"])
def test_plugins_are_names_of_modules_of_one_s_own(name):
    with pytest.raises(ValueError, match=r"^plugins"):
        check_plugins([name])
    with pytest.raises(ValueError, match="names of modules"):
        check_plugins("my_lab")


def test_nothing_is_imported_unless_it_is_said():
    with pytest.raises(ValueError, match=r"plugins=\('fractions',\)"):
        build({"name": "fractions:Fraction", "numerator": 3}, {})
