"""Runs of the real command in processes of their own, on the session's compilation cache."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from counting import HANGS_S
from xla_flags import with_devices

ROOT = Path(__file__).parent.parent.parent


class Command:
    """Starts `clipjax` as a person would, on one CPU device unless told otherwise."""

    def __init__(self) -> None:
        self.env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": with_devices(1),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }

    def __call__(self, *args, env=None, check=0, command=None, timeout=HANGS_S):
        command = command or [sys.executable, "-m", "clipjax"]
        done = subprocess.run(
            [*command, *map(str, args)],
            cwd=ROOT,
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}:\n{done.stderr[-3000:]}"
        return done

    def two(self, *args, **options):
        """The same in two processes, which launch/local.sh joins."""
        env = {"CLIPJAX_COMMAND": f"{sys.executable} -m clipjax"}
        return self("2", *args, command=["bash", "launch/local.sh"], env=env, **options)

    def train(self, workdir, *flags, **options):
        base = ("train", "--config", "configs/smoke.py", "--workdir", workdir)
        return self(*base, *flags, **options)


@pytest.fixture(scope="session")
def clipjax():
    return Command()


def read_losses(workdir):
    """step -> loss, exactly as written."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), "a step stands twice, or out of order"
    return {row["step"]: row["loss"] for row in rows}


def read_digests(workdir, step):
    """leaf -> SHA-256 of the final state."""
    manifest = json.loads((Path(workdir) / "checkpoints" / str(step) / "manifest.json").read_text())
    return {leaf["name"]: leaf["sha256"] for leaf in manifest["leaves"]}


@pytest.fixture(scope="session")
def losses_of():
    return read_losses


@pytest.fixture(scope="session")
def digests_of():
    return read_digests


@pytest.fixture(scope="session")
def reference(clipjax, tmp_path_factory):
    """One run that nothing disturbed; of several workers one makes it, and each has a copy."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers
    with open(shared / "reference.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "reference").exists():
            clipjax.train(shared / "making_reference")
            (shared / "making_reference").rename(shared / "reference")
    return Path(shutil.copytree(shared / "reference", tmp_path_factory.mktemp("mine") / "run"))


@pytest.fixture(scope="session")
def evaluated(clipjax, reference, tmp_path_factory):
    """Flags of `clipjax eval`, and what it writes of the undisturbed run, in one process."""
    flags = ("--zero_shot=synthetic:128", "--retrieval=synthetic:64", "--templates=plain")
    found = tmp_path_factory.mktemp("evaluated") / "found.json"
    clipjax("eval", "--checkpoint", reference, *flags, f"--json={found}")
    return flags, json.loads(found.read_text())


@pytest.fixture
def train_here(command):
    """`clipjax train` of the smoke config in this process, for what ends before the first step."""

    def train(workdir, *flags):
        done = command("train", "--config=configs/smoke.py", f"--workdir={workdir}", *flags)
        assert done.code == 1 and "Traceback" not in done.err, done.err
        return done.err

    return train
