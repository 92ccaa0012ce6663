"""A checkpoint that its run deletes while somebody reads it, and paths in the home folder."""

import shutil

import pytest

from clipjax import faults
from clipjax.checkpoint import DamagedCheckpointError, load_params, read_newest
from clipjax.checkpoint.choice import StepDeletedError
from clipjax.config import default_config
from clipjax.data.classes.named_lists import load_class_names
from clipjax.experiment import resolve
from clipjax.inference import Model, model
from clipjax.interop.weights import Hints
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.tiny import tiny_spec


def test_the_next_step_is_taken(saved, caplog):
    directory, states = saved

    def read(found):
        if found.step_dir.name == "4":
            shutil.rmtree(found.step_dir)
        return found.manifest.step, load_params(found.step_dir)

    step, params = read_newest(directory, read)
    assert step == 3
    name = "image_encoder"
    assert params[name]["kernel"].tolist() == states[3].params[name]["kernel"].tolist()
    assert "4 was deleted while it was read" in caplog.text


def test_of_one_steps_folder_there_is_no_next_one(saved):
    directory, _ = saved

    def read(found):
        shutil.rmtree(found.step_dir)
        return load_params(found.step_dir)

    with pytest.raises(StepDeletedError, match=r"4 was deleted while it was read.*workdir"):
        read_newest(directory / "4", read)
    with pytest.raises(ValueError, match="no checkpoint at"):
        read_newest(directory, read)  # which deletes all that are left


def test_damage_is_not_taken_for_a_deletion(saved):
    directory, _ = saved
    shutil.rmtree(directory / "4" / "state")
    with pytest.raises(DamagedCheckpointError, match="step 3 is there as well"):
        read_newest(directory, lambda found: load_params(found.step_dir))


def test_a_model_is_read_from_the_next_step(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path, tiny_spec(text={"vocab_size": 49408}), step=step)
    whole = model.load_tokenizer

    def overtaken(step_dir, **options):
        made = whole(step_dir, **options)
        if step_dir.name == "2":
            shutil.rmtree(step_dir)
        return made

    monkeypatch.setattr(model, "load_tokenizer", overtaken)
    assert Model.from_checkpoint(tmp_path).spec["embed_dim"] == 8


def test_a_fine_tuning_that_has_saved_needs_its_source_no_more(tmp_path, caplog):
    spec = tiny_spec(text={"vocab_size": 49408})
    config = default_config()
    config.data.source = "synthetic:64"
    config.model.name = "checkpoint"
    config.init.checkpoint = str(tmp_path / "source")
    with pytest.raises(ValueError, match=r"init\.checkpoint: no checkpoint at .*source"):
        resolve(config, workdir=tmp_path / "run")
    step_dir = write_checkpoint(tmp_path / "run", spec, step=5)
    found = resolve(config, workdir=tmp_path / "run")
    assert found.init.step_dir == step_dir and found.spec["embed_dim"] == spec["embed_dim"]
    assert "goes on from its own" in caplog.text
    with pytest.raises(ValueError, match="no checkpoint at"):
        resolve(config)


@pytest.mark.parametrize("fault", ["damage", "EACCES"])
def test_nor_does_it_need_a_source_that_cannot_be_read(tmp_path, caplog, monkeypatch, fault):
    spec = tiny_spec(text={"vocab_size": 49408})
    source = write_checkpoint(tmp_path / "source", spec, step=1)
    config = default_config()
    config.data.source = "synthetic:64"
    config.model.name = "checkpoint"
    config.init.checkpoint = str(tmp_path / "source")
    assert resolve(config, workdir=tmp_path / "run").init.step_dir == source
    if fault == "damage":
        (source / "manifest.json").write_text("{")
    else:
        monkeypatch.setenv(faults.FAULT, f"{fault}@checkpoint.look")
    with pytest.raises((DamagedCheckpointError, OSError)):
        resolve(config, workdir=tmp_path / "run")
    faults.fired.clear()
    step_dir = write_checkpoint(tmp_path / "run", spec, step=5)
    assert resolve(config, workdir=tmp_path / "run").init.step_dir == step_dir
    assert "goes on from its own" in caplog.text


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, kit):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "names.json").write_text('{"a": ["cat"]}')
    for name, wanted in (("~/names.txt", ["cat", "dog"]), ("~/names.json:a", ["cat"])):
        assert list(load_class_names(name)) == wanted
    assert kit.manager("~/run/checkpoints").directory == tmp_path / "run" / "checkpoints"
    assert Hints(lora="~/a", text_from="~/b", tokenizer="~/c") == Hints(
        lora=f"{tmp_path}/a", text_from=f"{tmp_path}/b", tokenizer=f"{tmp_path}/c"
    )
