"""K7: storage that is full, fails, is read-only or slow, while a run saves, deletes or resumes."""

import os
import shutil
from pathlib import Path

import jax

from clipjax import faults
from clipjax.checkpoint import CheckpointManager, CheckpointSaveError
from clipjax.data.storage import retrying
from clipjax.data.storage.retrying import StorageError
from tests.faults.row import Row, Trial
from tests.faults.storing import metadata, same, spoilt_run, state_of

SAVES = [
    (error, f"save.{place}")
    for error in ("ENOSPC", "EIO", "ESTALE", "EROFS", "EDQUOT", "slow")
    for place in ("mid_write", "before_manifest", "before_rename")
]
DELETIONS = [
    (error, f"save.{place}") for error in ("EBUSY", "EROFS") for place in ("delete", "rename_old")
]
READS = [
    (error, f"checkpoint.{place}")
    for error in ("EIO", "ESTALE", "EMFILE", "ENOMEM", "ETIMEDOUT")
    for place in ("look", "read_manifest", "verify", "restore")
]
CASES = [*SAVES, *DELETIONS, *READS]


def manager(trial: Trial, workdir: Path) -> CheckpointManager:
    return CheckpointManager(workdir / "checkpoints", keep=2, metadata=metadata(trial.shared))


def restored(trial: Trial, workdir: Path) -> int:
    """Resumes; the step, which has the state that was saved."""
    wanted = state_of(trial.shared, 1)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    with manager(trial, workdir) as opened:
        state, step = opened.restore_latest(abstract)
    assert same(state, state_of(trial.shared, step)), f"another state at step {step}"
    return step


def steps(workdir: Path) -> list[str]:
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def strike(trial: Trial) -> None:
    """A fault at one place; then it is gone, and the run goes on."""
    error, place = CASES[trial.index % len(CASES)]
    workdir = spoilt_run(trial)
    if place.startswith("checkpoint."):
        reading(trial, workdir, error, place)
    elif place in ("save.delete", "save.rename_old"):
        deleting(trial, workdir, error, place)
    else:
        saving(trial, workdir, error, place)


def injected(text: str, call):
    """Calls with an injected fault; what it raised."""
    delay, retrying.FIRST_DELAY_S = retrying.FIRST_DELAY_S, 0.001
    os.environ[faults.FAULT] = text
    try:
        call()
    except Exception as error:
        return error
    finally:
        del os.environ[faults.FAULT]
        retrying.FIRST_DELAY_S = delay
    return None


def save(trial: Trial, workdir: Path) -> None:
    with manager(trial, workdir) as opened:
        opened.save(3, state_of(trial.shared, 3), block=True)


def saving(trial: Trial, workdir: Path, error: str, place: str) -> None:
    met = injected(f"{error}@{place}:times={trial.index + 2}", lambda: save(trial, workdir))
    if error == "slow":
        assert met is None, met
        assert restored(trial, workdir) == 3
        return
    assert isinstance(met, CheckpointSaveError), f"the save ended with {met!r}"
    assert "older checkpoints are intact" in str(met), met
    assert not any("tmp" in name for name in steps(workdir)), f"{steps(workdir)} takes space"
    assert restored(trial, workdir) == 2, "the step before was lost"
    save(trial, workdir)  # there is space again
    assert restored(trial, workdir) == 3 and steps(workdir) == ["2", "3"], steps(workdir)


def deleting(trial: Trial, workdir: Path, error: str, place: str) -> None:
    met = injected(f"{error}@{place}:times={trial.index + 2}", lambda: save(trial, workdir))
    assert met is None, f"an old step that cannot be deleted ended the save: {met!r}"
    assert restored(trial, workdir) == 3
    with manager(trial, workdir) as opened:
        opened.save(4, state_of(trial.shared, 4), block=True)
    assert steps(workdir) == ["3", "4"], f"{steps(workdir)}: it was not tried again"


def reading(trial: Trial, workdir: Path, error: str, place: str) -> None:
    met = injected(f"{error}@{place}:times=2", lambda: restored(trial, workdir))
    assert met is None, f"two failures were not waited for: {met!r}"
    faults_text = f"{error}@{place}:times={10_000 + trial.index}"
    met = injected(faults_text, lambda: restored(trial, workdir))
    assert isinstance(met, StorageError) and "failed 6 times" in str(met), f"{met!r}"
    assert steps(workdir) == ["1", "2"], f"{steps(workdir)}: a fault was taken for damage"
    assert restored(trial, workdir) == 2


def condemned(trial: Trial) -> None:
    """What was done before: a step that cannot be read is set aside."""
    workdir = spoilt_run(trial)
    shutil.move(workdir / "checkpoints" / "2", workdir / "checkpoints" / "2.damaged")
    assert restored(trial, workdir) == 2, "a fault was taken for damage"


ROWS = [
    Row(
        name="K7",
        fault="no space, EIO, ESTALE, read-only, quota, no descriptors or memory, slow; injected",
        holds="a save fails aloud and leaves the steps before; nothing is condemned; it goes on",
        trials=len(CASES),
        default=4,
        run=strike,
        control=condemned,
        others="Orbax mocks them",
    )
]
