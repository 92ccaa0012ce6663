"""What the verbs show and write of names from the web, and of a URL that holds a credential."""

import re

import fsspec
import numpy as np
import pytest
from PIL import Image

from clipjax import redaction

CLASSES = ("cat\x1b[31m", "dog\u202egod", "漢字 ❤\ufe0f")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
SPEC = "folder:memory://user:CANARY@host/classes"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders with names from the web, one picture each; one does not decode."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir()
        image = Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8))
        image.save(folder / name / "0\x1b[2J.png")
    (folder / CLASSES[0] / "x\x1b[2J.png").write_bytes(b"no picture")
    return sorted(folder.rglob("*.png"))


@pytest.fixture
def bucket(pictures):
    """The same in a bucket that is reached with a credential."""
    system = fsspec.filesystem("memory")
    for path in pictures:
        where = f"memory://user:CANARY@host/classes/{path.parent.name}/{path.name}"
        system.pipe_file(where, path.read_bytes())
    yield
    system.rm("/user:CANARY@host", recursive=True)


def test_labels_and_files_of_classify(command, original, pictures):
    labels = f"--labels={','.join(CLASSES)}"
    done = command("classify", "--checkpoint", original, labels, pictures[-1])
    assert done.code == 0, done.err
    assert not RAW.search(done.out + done.err) and CLASSES[2] in done.out
    assert r"cat\x1b[31m" in done.out and r"dog\u202egod" in done.out
    assert r"/0\x1b[2J.png" in done.out


def test_verbs_on_a_dataset(command, bucket, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for code, words, arguments in (
        (1, r"x\x1b[2J.png (the image", ("check", SPEC, "--decode")),
        (0, "pairs", ("stats", SPEC, f"--sheet={out}.html", f"--json={out}.json")),
        (0, "pairs", ("stats", SPEC, f"--sheet={out}.png")),
        (0, "3 examples in 1", ("pack", f"--from={SPEC}", f"--to={out}", "--max_bad_fraction=0.9")),
        (1, "memory://[redacted]@host/classes-none", ("stats", f"{SPEC}-none")),
    ):
        done = command("data", *arguments)
        assert done.code == code and words in done.out + done.err, done.err
        assert not RAW.search(done.out + done.err) and "CANARY" not in done.out + done.err
    page = out.with_suffix(".html").read_text()
    assert "folder:memory://[redacted]@host/classes" in page and not RAW.search(page)
    assert r"cat\x1b[31m" in page and CLASSES[2] in page
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 4 and not any(b"CANARY" in path.read_bytes() for path in written)
    # Negative control: with the redaction off, the canary is found.
    monkeypatch.setattr(redaction, "USER_INFO", re.compile("(?!)"))
    assert "CANARY" in command("data", *arguments).err
