"""`clipjax eval` on files of other packages, without a conversion."""

import json

import pytest
from library_folder import weights, write_openai

from clipjax.checkpoint import digest
from clipjax.interop.converting import convert_weights
from clipjax.interop.formats import FORMATS

SPEC = "--zero_shot=synthetic:16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_openai(folder / "ViT-B-32.pt")
    FORMATS["hf"].write(folder / "hf", weights())
    convert_weights(folder / "hf", folder / "own", "clipjax")
    return folder


@pytest.mark.slow
def test_weights_of_another_package_give_the_numbers_of_their_conversion(command, folder):
    found = {}
    for name in ("hf", "ViT-B-32.pt", "own"):
        table = folder / f"{name}.json"
        done = command(
            "eval", f"--checkpoint={folder / name}", SPEC, f"--json={table}", "--batch_size=8"
        )
        assert done.code == 0, done.err
        found[name] = json.loads(table.read_text())
    for name in ("hf", "ViT-B-32.pt"):
        assert found[name]["evaluations"] == found["own"]["evaluations"]
        assert found[name]["tokenizer"] == found["own"]["tokenizer"]
    assert len({document["checkpoint_sha256"] for document in found.values()}) == 3
    done = command("classify", f"--checkpoint={folder / 'hf'}", "--labels=cat, dog", "none.jpg")
    assert done.code == 1 and "none.jpg" in done.err
    for name in ("hf", "ViT-B-32.pt"):
        flags = (f"--checkpoint={folder / name}", "--data=synthetic:16", "--batch_size=8")
        index = folder / f"{name}_index"
        assert command("embed", *flags, f"--out={index}").code == 0
        done = command("search", f"--index={index}", "--query=a red circle", "--top=2")
        assert done.code == 0 and len(done.out.splitlines()) == 2, done.err


def test_what_is_said_of_weights_and_is_wrong_is_told_by_the_flag(command, folder, tmp_path):
    def told(path, *more):
        done = command("eval", f"--checkpoint={path}", SPEC, *more)
        assert done.code == 1 and "Traceback" not in done.err
        return done.err

    assert "leave --model" in told(folder / "own", "--model=RN50")
    (tmp_path / "words.txt").write_text("cat")
    assert "--tokenizer" in told(folder / "hf", f"--tokenizer={tmp_path / 'words.txt'}")
    assert "no such file" in told(tmp_path / "nothing")
    manifest = next((folder / "own").rglob("manifest.json"))
    broken = tmp_path / "run" / "checkpoints" / "0"
    broken.mkdir(parents=True)
    fields = json.loads(manifest.read_text())
    fields["contract"] = {}
    del fields["manifest_sha256"]
    fields["manifest_sha256"] = digest(fields)
    (broken / "manifest.json").write_text(json.dumps(fields))
    assert "contract" in told(tmp_path / "run")


def test_what_is_measured_stands_beside_the_target(command, folder, tmp_path):
    def verify(top1, *more):
        (tmp_path / "config.py").write_text(
            "from clipjax.config import default_config\n\n\ndef get_config():\n"
            f"    config = default_config()\n    config.target.synthetic_16_top1 = {top1}\n"
            "    return config\n"
        )
        flags = (f"--config={tmp_path / 'config.py'}", "--batch_size=8", *more)
        return command("eval", f"--checkpoint={folder / 'own'}", SPEC, "--verify", *flags)

    table = tmp_path / "{dataset}.json"
    missed = verify(0.99, f"--json={table}", "--format=clip_benchmark")
    assert missed.code == 1 and "MISSED: synthetic_16_top1 is to be 0.9900" in missed.out
    assert "n = 16" in missed.out
    found = json.loads((tmp_path / "synthetic_16.json").read_text())
    assert found["model"] == "custom" and 0 <= found["metrics"]["acc1"] <= 1
    met = verify(0.01)
    assert met.code == 0 and "met: synthetic_16_top1" in met.out
    done = command("eval", f"--checkpoint={folder / 'own'}", SPEC, "--verify")
    assert done.code == 1 and "the checkpoint's run has no target" in done.err
