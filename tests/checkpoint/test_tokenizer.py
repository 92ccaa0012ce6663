"""A checkpoint carries its tokenizer's file: nothing else is needed to use it."""

import shutil
import sys
import types

import pytest
from vocabularies import OTHER_WORDS, WORDS, sentencepiece_model

from clipjax.checkpoint import (
    CheckpointManager,
    DamagedCheckpointError,
    MissingTokenizer,
    check_contract,
    check_resume,
    load_tokenizer,
    make_contract,
    read_manifest,
    spec_in,
    without_tokenizer,
)
from clipjax.models.zoo import MODELS
from clipjax.tokenizers import make_tokenizer


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "elsewhere" / "words.model"
    path.parent.mkdir()
    path.write_bytes(sentencepiece_model())
    return path


def contract_of(path):
    tokenizer = {"name": "sentencepiece", "model": str(path)}
    spec = {**MODELS["siglip-b-16-224"], "tokenizer": tokenizer}
    built = make_tokenizer(tokenizer, context_length=spec["text"]["context_length"])
    return make_contract(spec, built.contract())


def metadata_of(kit, path):
    config = {**kit.metadata["config"], "model": {"tokenizer": {"model": str(path)}}}
    return {**kit.metadata, "config": config, "contract": contract_of(path)}


@pytest.fixture
def step_dir(tmp_path, kit, source):
    directory = tmp_path / "checkpoints"
    with CheckpointManager(directory, metadata=metadata_of(kit, source)) as manager:
        manager.save(3, kit.make_state(3))
    return directory / "3"


def test_the_file_travels_with_the_step(tmp_path, step_dir, source):
    before = make_tokenizer({"name": "sentencepiece", "model": str(source)}, context_length=64)
    expected = before(WORDS)
    shutil.rmtree(source.parent)
    moved = shutil.move(step_dir.parent, tmp_path / "moved") / "3"
    manifest = read_manifest(moved)
    assert (moved / "tokenizer" / "words.model").read_bytes() == sentencepiece_model()
    assert "tokenizer/words.model" in {file.path for file in manifest.files}
    assert manifest.contract["model"]["tokenizer"]["model"] == "tokenizer/words.model"
    assert (load_tokenizer(moved)(WORDS) == expected).all()
    spec = spec_in(moved, manifest.contract)
    assert spec["tokenizer"]["model"] == str(moved / "tokenizer" / "words.model")


def test_the_state_is_restored_beside_it(step_dir, source, kit):
    with CheckpointManager(step_dir.parent, metadata=metadata_of(kit, source)) as manager:
        state, step = manager.restore_latest(kit.abstract_of(kit.make_state(0)))
    assert step == 3
    kit.assert_equal(state, kit.make_state(3))


def test_the_file_may_move_but_not_change(step_dir, source, kit, tmp_path):
    moved = tmp_path / "again.model"
    shutil.copyfile(source, moved)
    manifest = read_manifest(step_dir)
    check_resume(manifest, metadata_of(kit, moved))
    check_contract(manifest.contract, contract_of(moved))
    other = tmp_path / "other.model"
    other.write_bytes(sentencepiece_model(OTHER_WORDS))
    with pytest.raises(ValueError, match=r"contract\.tokenizer\.sha256"):
        check_resume(manifest, metadata_of(kit, other))
    shutil.copyfile(other, step_dir / "tokenizer" / "words.model")
    with pytest.raises(ValueError, match=r"tokenizer\.sha256"):
        load_tokenizer(step_dir)


def test_a_path_out_of_the_folder_is_refused(step_dir):
    contract = dict(read_manifest(step_dir).contract)
    tokenizer = {"name": "sentencepiece", "model": "tokenizer/../../../secret"}
    contract["model"] = {**contract["model"], "tokenizer": tokenizer}
    with pytest.raises(DamagedCheckpointError, match="outside its folder"):
        spec_in(step_dir, contract)


def test_a_checkpoint_without_its_vocabulary_says_so_when_texts_come(tmp_path, kit, source):
    contract = without_tokenizer(contract_of(source))
    contract["model"]["tokenizer"] = {"name": "sentencepiece"}
    with CheckpointManager(tmp_path / "c", metadata={**kit.metadata, "contract": contract}) as m:
        m.save(1, kit.make_state(1))
    tokenizer = load_tokenizer(tmp_path / "c" / "1")
    assert isinstance(tokenizer, MissingTokenizer)
    with pytest.raises(ValueError, match="tokenizer=FILE"):
        tokenizer(["a dog"])
    given = load_tokenizer(tmp_path / "c" / "1", tokenizer=source)
    assert given(["a red circle"]).shape == (1, 64)
    contract["model"]["text"] = {**contract["model"]["text"], "vocab_size": 7}
    with CheckpointManager(tmp_path / "d", metadata={**kit.metadata, "contract": contract}) as m:
        m.save(1, kit.make_state(1))
    with pytest.raises(ValueError, match="not its vocabulary"):
        load_tokenizer(tmp_path / "d" / "1", tokenizer=source)


@pytest.mark.parametrize("part", ["image", "text", "tokenizer"])
def test_a_checkpoint_makes_nobody_import_code(step_dir, tmp_path, monkeypatch, part):
    (tmp_path / "evil_lab.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    contract = read_manifest(step_dir).contract
    contract["model"][part]["name"] = "evil_lab:Tower"
    module = types.ModuleType("evil_lab")
    module.Tower = type("Tower", (), {"__module__": "evil_lab"})
    monkeypatch.setitem(sys.modules, "evil_lab", module)  # imported already: no permission either
    wanted = rf"model.{part}.name = 'evil_lab:Tower'.*plugins=\('evil_lab',\)"
    with pytest.raises(ValueError, match=wanted):
        spec_in(step_dir, contract)
    with pytest.raises(ValueError, match=wanted):
        spec_in(step_dir, contract, plugins=("evil_lab2", "lab", "evil_la", "evil_lab.x"))
    assert not (tmp_path / "ran").exists()
    # Whoever names it says that it is trusted.
    assert spec_in(step_dir, contract, plugins=("evil_lab",))[part]["name"] == "evil_lab:Tower"
