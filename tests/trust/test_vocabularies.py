"""A checkpoint names no file outside itself: its vocabulary is inside, or a person gives it."""

import hashlib
import shutil
from pathlib import Path

import pytest
from vocabularies import OTHER_WORDS, sentencepiece_model

from clipjax.checkpoint import attach_tokenizer, make_contract


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "words.model"
    path.write_bytes(sentencepiece_model())
    return path


@pytest.fixture(scope="module")
def with_file(kit, file, tmp_path_factory):
    """A checkpoint with a vocabulary of its own."""
    workdir = tmp_path_factory.mktemp("sentencepiece")
    kit.write(workdir, {**kit.spec, "tokenizer": {"name": "sentencepiece", "model": str(file)}})
    return workdir


@pytest.fixture
def workdir(with_file, tmp_path):
    return Path(shutil.copytree(with_file, tmp_path / "run"))


def naming(path):
    def change(fields):
        fields["contract"]["model"]["tokenizer"]["model"] = path

    return change


VERBS = ("classify", "eval", "score", "convert", "finetune")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "place", ["/etc/hostname", "s3://bucket/words.model", "words.model", "~/x"]
)
def test_a_file_elsewhere_is_not_opened(
    verb, place, command, workdir, picture, tmp_path, kit, monkeypatch
):
    kit.rewrite(workdir / "checkpoints" / "1", naming(place))
    opened = []
    monkeypatch.setattr(
        "clipjax.tokenizers.sentencepiece.read_tokenizer_file", lambda *a: opened.append(a)
    )
    done = command(*kit.verbs(workdir, picture, tmp_path)[verb])
    assert done.code == 1
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert repr(place) in done.err
    assert "--tokenizer FILE" in done.err
    assert opened == []


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc/hostname",
        "..",
        "a\\b",
        "a\0b",
        "/x",
    ],
)
def test_a_path_that_leads_out_is_damage(path, command, workdir, picture, tmp_path, kit):
    kit.rewrite(workdir / "checkpoints" / "1", naming(f"tokenizer/{path}"))
    done = command(*kit.verbs(workdir, picture, tmp_path)["classify"])
    assert done.code == 1
    assert "outside its folder" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_checkpoint_of_before_opens_with_the_file(
    command, workdir, with_file, file, picture, tmp_path, kit
):
    step_dir = workdir / "checkpoints" / "1"
    kit.rewrite(step_dir, naming(f"/home/somebody/{file.name}"))
    shutil.rmtree(step_dir / "tokenizer")
    kit.rewrite(
        step_dir,
        lambda fields: fields.update(
            files=[x for x in fields["files"] if not x["path"].startswith("tokenizer/")]
        ),
    )
    arguments = kit.verbs(workdir, picture, tmp_path)
    done = command(*arguments["classify"], "--tokenizer", file)
    assert done.code == 0, done.err
    assert done.out == command(*kit.verbs(with_file, picture, tmp_path)["classify"]).out
    other = tmp_path / "other.model"
    other.write_bytes(sentencepiece_model(OTHER_WORDS))
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    for verb in ("classify", "eval", "score", "convert"):
        done = command(*arguments[verb], "--tokenizer", other)
        assert done.code == 1
        assert digest in done.err
        done = command(*arguments[verb], "--tokenizer", tmp_path / "nowhere")
        assert done.code == 1
        assert "nowhere: no such file" in done.err
    done = command(*arguments["finetune"], "--tokenizer", other)
    assert done.code == 1
    assert "tokenizer.sha256" in done.err
    # Converted, it has its vocabulary inside again.
    done = command(*arguments["convert"], "--tokenizer", file)
    assert done.code == 0, done.err
    assert (tmp_path / "converted/checkpoints/0/tokenizer/words.model").is_file()


def test_a_shipped_tokenizer_takes_no_file(command, original, file, picture, tmp_path, kit):
    arguments = kit.verbs(original, picture, tmp_path)
    for verb in ("classify", "convert"):
        done = command(*arguments[verb], "--tokenizer", file)
        assert done.code == 1
        assert "leave it out" in done.err


def test_no_checkpoint_is_written_that_names_a_file_elsewhere(kit, tmp_path):
    tokenizer = {"name": "sentencepiece", "model": str(tmp_path / "gone.model")}
    with pytest.raises(ValueError, match=r"gone\.model.*no such file"):
        attach_tokenizer(make_contract({**kit.spec, "tokenizer": tokenizer}, {}))
