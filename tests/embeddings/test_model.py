"""The model of an index: what was said to read its file is kept, and its tokenizer is compared."""

import json
import shutil

import numpy as np
import pytest
from embedding import embed
from library_folder import weights
from vocabularies import OTHER_WORDS, sentencepiece_model

from clipjax.config import merge, to_plain
from clipjax.interop import big_vision, export
from clipjax.models import MODELS

MODEL = "siglip-b-16-224"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A file of big_vision's, which says neither its model nor its vocabulary; two of these."""
    folder = tmp_path_factory.mktemp("foreign")
    tower = {"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64}
    changes = {"image_size": 32, "image": tower, "text": tower | {"vocab_size": 50}}
    spec = merge(to_plain(MODELS[MODEL]), {**changes, "embed_dim": 64})
    tensors = export(big_vision.leaves(spec), weights(spec).leaves)
    np.savez(folder / "webli.npz", **{f"params/{name}": x.read() for name, x in tensors.items()})
    (folder / "own.model").write_bytes(sentencepiece_model())
    (folder / "other.model").write_bytes(sentencepiece_model(OTHER_WORDS))
    return folder


def search(command, index, *flags):
    return command("search", f"--index={index}", "--query=a cat", "--top=2", *flags)


@pytest.mark.slow
def test_what_was_said_of_a_file_is_kept_and_its_tokenizer_is_compared(
    command, foreign, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(foreign)
    spec, index = f"folder:{pictures}", tmp_path / "index"
    said = (f"--model={MODEL}", "--tokenizer=own.model")
    done = embed(command, "webli.npz", spec, index, *said)
    assert done.code == 0, done.err
    kept = json.loads((index / "index.json").read_text())["model"]["hints"]
    assert kept == {"model": MODEL, "tokenizer": str(foreign / "own.model")}
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(foreign, tmp_path / "moved")
    found = search(command, index, f"--checkpoint={moved}/webli.npz")
    assert found.code == 0 and len(found.out.splitlines()) == 2, found.err
    done = search(command, index, f"--tokenizer={foreign}/other.model")
    assert done.code == 1 and "was made with another tokenizer" in done.err, done.err
    done = embed(command, foreign / "webli.npz", spec, index, said[0])
    assert done.code == 1 and "their model.tokenizer_sha256 is" in done.err, done.err
    own = f"--tokenizer={moved}/own.model"
    again = embed(command, moved / "webli.npz", spec, index, said[0], own)
    assert again.code == 0 and "3 of 3 shards are there already" in again.err, again.err


@pytest.mark.slow
def test_without_a_vocabulary_texts_are_looked_for_once_it_is_given(
    command, foreign, pictures, tmp_path
):
    flags = (command, foreign / "webli.npz", f"folder:{pictures}")
    own = f"--tokenizer={foreign}/own.model"
    for name, more in {"bare": (), "with": (own,)}.items():
        assert embed(*flags, tmp_path / name, f"--model={MODEL}", *more).code == 0
    done = search(command, tmp_path / "bare")
    assert done.code == 1 and "came without the vocabulary" in done.err, done.err
    assert "--tokenizer" in done.err
    found = search(command, tmp_path / "bare", own)
    assert found.code == 0 and found.out == search(command, tmp_path / "with").out, found.err


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (["model"], "is damaged, its model.hints is"),
        ({"plugins": ["os"]}, "is damaged, its model.hints is"),
        ({"activation": 3}, "model.hints.activation = 3"),
        ({"rename": [["("]]}, r"model.hints.rename"),
        ({"format": "os:getcwd"}, "names code"),
        ({"tokenizer": "/nowhere/own.model"}, "say where it is by --tokenizer"),
        ({"activation": "gelu"}, "leave --model and --activation out"),
    ],
    ids=str,
)
def test_hints_of_an_index_are_checked_and_name_no_code(command, index, tmp_path, hints, words):
    copy = shutil.copytree(index, tmp_path / "index")
    about = json.loads((copy / "index.json").read_text())
    assert about["model"]["hints"] == {}
    about["model"]["hints"] = hints
    (copy / "index.json").write_text(json.dumps(about))
    done = command("search", f"--index={copy}", "--query=a cat", "--top=1")
    assert done.code == 1 and words in done.err and "Traceback" not in done.err, done.err
