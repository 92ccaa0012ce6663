"""Jobs of packing that are stopped, damaged, or run side by side."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from counting import HANGS_S

from clipjax.data.inspect.checking import check
from clipjax.data.packing.packer import Packing, pack
from clipjax.data.sources import make_source

pytestmark = pytest.mark.usefixtures("cache")
SPEC = "synthetic:40?side=8"
SUFFIXES = {"tar": "tar", "arrayrecord": "array_record"}


def run(directory, *, workers=1, source=None, **options):
    how = Packing(**{"shard_size": 4, **options})
    return list(pack(source or make_source(SPEC), directory, how, workers=workers))


def hashes(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def findings(spec):
    return [finding for checked, _ in check(spec, workers=1) for finding in checked.findings]


@pytest.mark.parametrize("format", SUFFIXES)
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, format):
    for workers in (1, 4):
        run(tmp_path / str(workers), workers=workers, format=format)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "4")
    assert len(hashes(tmp_path / "1")) == (11 if format == "tar" else 21)


KILLED = """
import os, signal, sys
from clipjax.data.packing.packer import Packing, pack
from clipjax.data.sources.synthetic import Synthetic

class Killed(Synthetic):
    def __getitem__(self, index):
        if index == 22:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

list(pack(Killed("40", side=8), sys.argv[1], Packing(shard_size=4, format=sys.argv[2]), workers=2))
"""


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path, format):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), format]
    done = subprocess.run(command, capture_output=True, timeout=HANGS_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = hashes(tmp_path / "a")
    assert "manifest.json" not in left and any(name.endswith(".tmp") for name in left)
    (tmp_path / "a/.tmp-00001111-00001.tar.packed").touch()  # and a note that was not renamed
    run(tmp_path / "a", workers=2, format=format)
    run(tmp_path / "whole", format=format)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "whole")


def test_two_jobs_do_not_share_a_directory(tmp_path):
    began, go_on = threading.Event(), threading.Event()

    class Slow(type(make_source(SPEC))):
        def __getitem__(self, index):
            if index == 6:
                began.set()
                assert go_on.wait(HANGS_S)
            return super().__getitem__(index)

    slow = threading.Thread(target=run, args=(tmp_path,), kwargs={"source": Slow("40", side=8)})
    slow.start()
    assert began.wait(HANGS_S)
    with pytest.raises(ValueError, match="is in use: another process packs into it"):
        run(tmp_path)
    go_on.set()
    slow.join()
    assert len(hashes(tmp_path)) == 11  # ten shards and the manifest; no lock is left
    assert run(tmp_path) == []


DAMAGES = [
    ("[]", r"manifest.json is of the format \[\], expected 'clipjax.packing/1': copy it again"),
    ("{}", "manifest.json is of the format None"),
    ('{"form', r"manifest.json is no JSON \("),
    ("[" * 100_000, r"manifest.json is no JSON \("),
    ('{"format": "clipjax.packing/2"}', "manifest.json is of the format 'clipjax.packing/2'"),
    ('{"format": "clipjax.packing/1"}', "manifest.json is damaged, its 'count' is None"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("format", SUFFIXES)
def test_a_damaged_manifest_is_told(tmp_path, format, content, message):
    run(tmp_path, format=format)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(content)
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/{message}"):
        run(tmp_path, format=format)
    assert hashes(tmp_path) == before
    ((where, what),) = findings(f"{format}:{tmp_path}/*.{SUFFIXES[format]}")
    assert where == str(manifest) and message.partition(" ")[2][:9] in what


@pytest.mark.parametrize(
    "change", [{"name": "../a.tar"}, {"bytes": "9"}, {"sha256": None}, {"skipped": {"a": "1"}}]
)
def test_a_manifest_with_a_wrong_shard_is_told(tmp_path, change):
    run(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][1] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"manifest.json is damaged, its '{next(iter(change))}'"):
        run(tmp_path)
    ((where, _),) = findings(f"tar:{tmp_path}/*.tar")
    assert where == f"{tmp_path}/manifest.json"


def stopped(directory, format):
    """A job of which every shard but the last is done."""

    class Stopped(type(make_source(SPEC))):
        def __getitem__(self, index):
            if index == 39:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        run(directory, source=Stopped("40", side=8), format=format)


@pytest.mark.parametrize("format", SUFFIXES)
def test_damaged_notes_of_a_stopped_job_are_made_anew(tmp_path, format, caplog):
    run(tmp_path / "whole", format=format)
    stopped(tmp_path / "a", format)
    first, second, *_ = sorted((tmp_path / "a").glob("*.packed"))
    first.write_text("[]")
    second.write_text('{"name')
    if format == "arrayrecord":  # as is the manifest of a file of records
        (tmp_path / "a/00002.array_record.json").write_text("{")
    run(tmp_path / "a", format=format)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "whole")
    assert caplog.text.count("is not what was written") == 2 + (format == "arrayrecord")


def test_a_damaged_job_is_told(tmp_path):
    stopped(tmp_path, "tar")
    (tmp_path / "packing.json").write_text("null")
    with pytest.raises(ValueError, match=r"packing.json is of the format None.*another directory"):
        run(tmp_path)


def test_a_copied_folder_is_checked_where_it_stands(tmp_path):
    run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert findings(f"tar:{tmp_path}/b/*.tar") == []
