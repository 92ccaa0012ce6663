"""`clipjax embed`: each picture once, the same files however often it was stopped."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from counting import HANGS_S, wait_until
from PIL import Image
from xla_flags import with_devices

import clipjax
from clipjax.data.storage.cache import lock
from clipjax.embeddings.writing import LOCK

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_each_picture_stands_once_with_its_key_and_captions(index, checkpoint, pictures):
    good = [number for number in range(23) if number != 5]
    tables = [pq.read_table(index / f"{shard:05d}.parquet") for shard in range(3)]
    assert [len(table) for table in tables] == [7, 8, 7]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["row"] for row in rows] == good
    assert [row["key"] for row in rows] == [f"{number:02d}.png" for number in good]
    assert rows[3]["captions"] == ["picture 3", "number 3"]
    assert (rows[0]["width"], rows[0]["height"]) == (40, 32)
    model = clipjax.load(checkpoint)
    expected = model.encode_image([pictures / f"{number:02d}.png" for number in good])
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)
    about = json.loads((index / "index.json").read_text())
    assert about["skipped"] == {"image_format": 1} and about["count"] == 22
    assert about["preprocess"]["image_size"] == 16 and len(about["model"]["sha256"]) == 64
    assert {path.name for path in index.iterdir()} == {
        *("index.json", "00000.parquet", "00001.parquet", "00002.parquet")
    }


def test_what_is_lost_is_made_anew_to_the_bit(index, embed_here, tmp_path):
    out = tmp_path / "index"
    shutil.copytree(index, out)
    before = contents(out)
    kept = (out / "00000.parquet").stat().st_mtime_ns
    (out / "00001.parquet").write_bytes(before["00001.parquet"][:-9])
    (out / "00002.parquet").unlink()
    (out / ".tmp-0-00002.parquet").write_bytes(b"left over")
    done = embed_here(out)
    assert done.code == 0 and "1 of 3 shards are there already" in done.err, done.err
    assert "16 of 23 pictures" in done.err and "23 of 23 pictures" in done.err
    assert contents(out) == before
    assert (out / "00000.parquet").stat().st_mtime_ns == kept
    assert embed_here(out).code == 0 and contents(out) == before


def test_arrays_of_half_the_size_hold_the_same(index, embed_here, pictures, tmp_path):
    spec = f"pictures:{pictures}"  # which has their captions not
    done = embed_here(tmp_path / "npy", "--format=npy", "--store=float16", spec=spec)
    assert done.code == 0, done.err
    for shard in ("00000", "00001", "00002"):
        found = np.load(tmp_path / "npy" / f"{shard}.npy")
        table = pq.read_table(index / f"{shard}.parquet")
        expected = np.array(table["embedding"].to_pylist(), np.float32)
        assert found.dtype == np.float16 and (found == expected.astype(np.float16)).all()
        beside = pq.read_table(tmp_path / "npy" / f"{shard}.parquet")
        assert beside["key"] == table["key"] and "embedding" not in beside.column_names
        assert beside["captions"].to_pylist() == [[]] * len(table)


def test_too_many_unusable_pictures_are_an_error_that_keeps_the_work(embed_here, tmp_path):
    done = embed_here(tmp_path, "--max_bad_fraction=0.01")
    assert done.code == 1 and "1 of 23 examples are unusable ({'image_format': 1})" in done.err
    assert not is_complete(tmp_path)
    assert embed_here(tmp_path).code == 0


def test_a_shard_of_which_nothing_can_be_used_is_an_empty_one(command, embed_here, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        picture = Image.new("RGB", (9, 9), (9 * number, 0, 0))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}")
        if number < 8:
            (folder / f"{number}.png").write_bytes(b"no picture")
    flags = {"spec": f"folder:{folder}"}
    assert embed_here(tmp_path / "index", "--max_bad_fraction=1", **flags).code == 0
    assert len(pq.read_table(tmp_path / "index" / "00000.parquet")) == 0
    done = command("search", f"--index={tmp_path}/index", f"--image={folder}/8.png", "--top=1")
    assert done.code == 0 and done.out == "1.0000  8.png  number 8\n", done.err
    (folder / "8.png").write_bytes(b"no picture")
    done = embed_here(tmp_path / "none", "--max_bad_fraction=1", **flags)
    assert done.code == 1 and "none of the 9 examples can be used" in done.err


def test_a_folder_of_something_else_is_refused(index, embed_here, tmp_path):
    before = contents(index)
    done = embed_here(index, spec="synthetic:20")
    assert done.code == 1 and "holds other embeddings: their data.fingerprint is" in done.err
    done = embed_here(index, "--store=float16")
    assert done.code == 1 and "their stored.dtype is 'float32'" in done.err
    with lock(index / LOCK, wait=False):
        done = embed_here(index)
    assert done.code == 1 and "is in use: another process embeds into it" in done.err
    (index / LOCK).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    done = embed_here(tmp_path)
    assert done.code == 1 and "holds notes.txt and no index.json" in done.err
    assert contents(index) == before


def start(checkpoint, spec, out, *more, **env):
    flags = ("--shard_size=8", "--batch_size=4", "--max_bad_fraction=0.1", *more)
    command = [sys.executable, "-m", "clipjax", "embed", "--checkpoint", checkpoint, "--data", spec]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        [*map(str, command), "--out", str(out), *flags], env=environment, stderr=subprocess.PIPE
    )


def start_all(count, *job, **env):
    """Starts a job on so many processes."""
    if count == 1:
        return [start(*job, **env)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env |= {"CLIPJAX_COORDINATOR": address, "CLIPJAX_NUM_PROCESSES": str(count)}
    return [start(*job, **env, CLIPJAX_PROCESS_ID=str(number)) for number in range(count)]


def ended(processes):
    """Waits for processes: their exit codes, and what they told."""
    told = [process.communicate(timeout=HANGS_S)[1].decode() for process in processes]
    return [process.returncode for process in processes], told


SHARDS = 50


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("form", "count", "trials"),
    [("parquet", 1, 20), ("npy", 1, 6), ("parquet", 2, 5), ("npy", 2, 3)],
)
def test_killed_at_random_moments_it_leaves_the_same_files(
    checkpoint, tmp_path, form, count, trials
):
    spec, env = f"synthetic:{8 * SHARDS}?side=32", {"XLA_FLAGS": with_devices(1)}
    flag = f"--format={form}"
    codes, told = ended(start_all(1, checkpoint, spec, tmp_path / "whole", flag, **env))
    assert codes == [0], told
    expected = contents(tmp_path / "whole")
    rng, found = random.Random(0), []
    for number in range(trials):
        # Every third one at its end, when the last shard is there and the index is written.
        after = SHARDS if number % 3 == 2 else rng.randrange(SHARDS - 5)
        job = (checkpoint, spec, tmp_path / str(number), flag)
        processes = start_all(count, *job, **env)
        # At any time from the opened folder on, in the middle of a shard or of its writing.
        wait_until(lambda out=job[2], after=after: len(list(out.glob("*.parquet"))) >= after)
        time.sleep(rng.uniform(0, 0.05 if after < SHARDS else 0.01))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        ended(processes)
        found.append(len(list(job[2].glob("*.parquet"))))
        assert after == SHARDS or not is_complete(job[2])
        codes, told = ended(start_all(count, *job, **env))
        assert codes == [0] * count, told
        assert contents(job[2]) == expected
    assert len(set(found)) > trials // 4 and SHARDS in found, found
    # The comparison sees one bit.
    path = tmp_path / "0" / "00003.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert contents(tmp_path / "0") != expected


@pytest.mark.slow
def test_a_second_command_is_refused_while_one_writes(checkpoint, tmp_path):
    job = (checkpoint, "synthetic:100?side=32", tmp_path / "index")
    first = start(*job)
    wait_until(lambda: list((tmp_path / "index").glob("*.parquet")))
    first.send_signal(signal.SIGSTOP)  # it writes for as long as the other one looks
    try:
        second = start(*job)
        _, told = second.communicate(timeout=HANGS_S)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1 and b"is in use: another process embeds into it" in told, told
    _, told = first.communicate(timeout=HANGS_S)
    assert first.returncode == 0 and is_complete(tmp_path / "index"), told


def is_complete(folder):
    path = folder / "index.json"
    return path.exists() and json.loads(path.read_text())["complete"]


@pytest.mark.slow
def test_two_processes_share_the_shards(index, checkpoint, pictures, tmp_path):
    job = (checkpoint, f"folder:{pictures}", tmp_path / "index")
    codes, told = ended(start_all(2, *job, XLA_FLAGS=os.environ["XLA_FLAGS"]))
    assert codes == [0, 0], told
    assert "24 of 24" not in told[0] and "pictures" in told[1]
    assert contents(tmp_path / "index") == contents(index)
