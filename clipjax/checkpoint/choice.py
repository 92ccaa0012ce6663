"""Which step is taken: the newest whole one, and never another without a word.

A run that resumes verifies every byte; what it finds wrong is renamed, never deleted. Only contents
condemn contents: storage that fails is asked again, and then stops the run. Whoever only
reads a checkpoint takes the newest finished step, and is told of newer ones that cannot be used.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from absl import logging
from jax import process_count

from clipjax.checkpoint import folders
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.manifest import DamagedCheckpointError
from clipjax.data.storage.files import local_path
from clipjax.data.storage.retrying import StorageError
from clipjax.processes.distributed import gather, gather_errors, is_lead

T = TypeVar("T")

CHECKPOINTS = "checkpoints"
_TRIES = 5  # a reader that is overtaken as often is too slow for what its run keeps
NO_STEP, WAS_DAMAGED = -1, -2


class StepDeletedError(ValueError):
    """A step was deleted by its run while it was read."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The step folder that a path means.

    Attributes:
        step_dir: the folder.
        passed_over: newer folders of the same run that cannot be used, each with why.
    """

    step_dir: Path
    passed_over: tuple[str, ...] = ()

    @functools.cached_property
    def manifest(self) -> manifests.Manifest:
        """What the folder says that it holds, read once.

        Raises:
            DamagedCheckpointError: it is damaged; an older step is named, if there is one.
        """
        with naming_older_steps(self.step_dir):
            return _read_own_manifest(self.step_dir)

    def warning(self) -> str:
        """What to say of the steps that were passed over; empty if there are none."""
        if not self.passed_over:
            return ""
        return (
            f"step {self.step_dir.name} of {self.step_dir.parent} is used, and newer ones are not: "
            f"{'; '.join(self.passed_over)}"
        )


def open_checkpoint(path: str | os.PathLike[str]) -> Choice:
    """Finds the step folder that a path means, and warns of newer steps that cannot be used.

    Args:
        path: a workdir, its `checkpoints` folder, or one step's folder.

    Returns:
        The step's folder, of several steps the newest that is committed, with its manifest.

    Raises:
        ValueError: there is no checkpoint.
        DamagedCheckpointError: its manifest is damaged; an older step is named, if there is one.
    """
    return read_newest(path, lambda choice: choice)


def choose_step(path: str | os.PathLike[str]) -> Choice:
    """As `open_checkpoint`, for those that do not speak: it returns what there is to say."""
    path = local_path(path, way="mount the bucket, or copy the checkpoint here").absolute()
    if not folders.is_folder(path):
        raise ValueError(
            f"no checkpoint at {path}: {'it is not a folder' if path.exists() else 'no such path'};"
            " give a workdir, its checkpoints folder, or one step's folder"
        )
    if folders.is_file(path / folders.MANIFEST):
        return Choice(path)
    for directory in (path, path / CHECKPOINTS):
        steps = folders.committed_steps(directory)
        if steps:
            passed_over = tuple(folders.unusable_after(directory, steps[-1]))
            return Choice(directory / str(steps[-1]), passed_over)
    raise ValueError(
        f"no checkpoint at {path}: neither it nor its {CHECKPOINTS} folder holds a finished step "
        f"(a number with a {folders.MANIFEST} inside); let the run save one first"
    )


def _read_own_manifest(step_dir: Path) -> manifests.Manifest:
    manifest = manifests.read_manifest(step_dir)
    if folders.is_step(step_dir) and str(manifest.step) != step_dir.name:
        raise DamagedCheckpointError(f"{step_dir} holds step {manifest.step}")
    return manifest


def read_newest(path: str | os.PathLike[str], read: Callable[[Choice], T]) -> T:
    """Reads the step that a path means; where its run deletes it meanwhile, the next one.

    Args:
        path: as for `open_checkpoint`.
        read: reads it; called again for the next one.

    Raises:
        ValueError: there is no checkpoint, or no longer.
        Exception: what `read` raises of a step that is still there.
    """
    for _ in range(_TRIES):
        choice = choose_step(path)
        if choice.passed_over and is_lead():
            logging.warning("%s", choice.warning())
        try:
            _ = choice.manifest  # it has to be whole
            return read(choice)
        except Exception as error:
            if folders.is_folder(choice.step_dir):
                raise
            told = error if isinstance(error, StepDeletedError) else _deleted(choice.step_dir)
            if choice.step_dir == local_path(path).absolute():
                raise told from error
            logging.warning("%s; the next one is taken", told)
    raise told


def _deleted(step_dir: Path) -> StepDeletedError:
    return StepDeletedError(
        f"{step_dir} was deleted while it was read: its run keeps the newest steps only "
        "(config.checkpoint.keep); give the run's workdir, or a copy of the step"
    )


@contextmanager
def naming_older_steps(step_dir: Path) -> Iterator[None]:
    """Adds to the message of damage which older step of the run there is, if there is one.

    Raises:
        StepDeletedError: in place of what was met in a folder that is gone.
    """
    try:
        yield
    except Exception as error:
        if not folders.is_folder(step_dir):
            raise _deleted(step_dir) from error
        if not isinstance(error, DamagedCheckpointError):
            raise
        steps = folders.committed_steps(step_dir.parent) if folders.is_step(step_dir) else []
        older = [step for step in steps if step < int(step_dir.name)]
        if not older:
            raise
        raise DamagedCheckpointError(
            f"{error}; step {older[-1]} is there as well: give {step_dir.parent / str(older[-1])}"
        ) from error


@contextmanager
def condemning_nothing(directory: Path) -> Iterator[None]:
    """Adds to the message of storage that fails that no checkpoint was taken for damaged.

    Raises:
        StorageError: in place of what the storage raised.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error}. No checkpoint in {directory} was renamed or deleted for it: look at the "
            "storage, then start again"
        ) from error


def agree_on_newest(directory: Path, *, allow_unfinished: bool) -> int:
    """Verifies the newest step and returns it, the same in every process.

    The lead reads every byte once and decides: two processes that choose by themselves could
    choose differently.

    Returns:
        The step, `NO_STEP`, or `WAS_DAMAGED` if it was set aside just now.

    Raises:
        Exception: what the lead met, other than damage; a StorageError in the other processes.
    """
    step, error = NO_STEP, None
    if is_lead():
        try:
            if allow_unfinished:
                set_unfinished_aside(directory)
            step = _verify_newest(directory)
        except Exception as found:
            error = found  # raised below: the others wait for an answer
    if failed := gather_errors(error):
        raise error or StorageError(f"{directory} cannot be read: {failed}")
    return gather(step)[0]


def read_in_all(step_dir: Path) -> manifests.Manifest:
    """Reads the manifest in every process; where one of them cannot, none goes on."""
    found, error = None, None
    try:
        found = manifests.read_manifest(step_dir)
    except Exception as met:
        error = met  # raised below: the others wait for an answer
    failed = gather_errors(error)
    if failed or found is None:
        raise error or StorageError(f"{step_dir} cannot be read everywhere: {failed}")
    return found


def condemn(step_dir: Path, manifest: manifests.Manifest, error: DamagedCheckpointError) -> None:
    """Sets a step aside of which a leaf came out wrong, the same in every process.

    Where there are several processes, one of them may have read wrong what is right: the lead
    looks at the files again.

    Raises:
        StorageError: the files are as they were written.
    """
    whole = False
    if is_lead():
        with suppress(DamagedCheckpointError):
            if process_count() > 1:
                manifests.verify_files(step_dir, manifest.files)
                whole = True
        if not whole:
            quarantine(step_dir, error)
    if gather(whole)[0]:  # nobody looks at the folders before the rename
        raise StorageError(
            f"{step_dir}: {error}, although the lead reads its files as they were written: look at "
            "the storage and the memory of the hosts, then start again"
        )


def _verify_newest(directory: Path) -> int:
    steps = folders.step_folders(directory)
    if not steps:
        return NO_STEP
    step_dir = directory / str(steps[-1])
    try:
        manifest = _read_own_manifest(step_dir)
        manifests.verify_files(step_dir, manifest.files)
    except DamagedCheckpointError as error:
        quarantine(step_dir, error)
        return WAS_DAMAGED
    return steps[-1]


def quarantine(step_dir: Path, error: DamagedCheckpointError) -> None:
    """Renames a damaged step, so that it no longer counts but can be looked at."""
    kept = folders.set_aside(step_dir, folders.DAMAGED)
    logging.error("damaged checkpoint: %s; set aside as %s", error, kept)


def set_unfinished_aside(directory: Path) -> None:
    """Sets aside the save that a killed process left behind; that is no damage.

    Only the newest folder can be one: a save starts after the one before it is committed. A
    folder further down without a manifest has lost it, which is damage.
    """
    steps = folders.step_folders(directory)
    if steps and steps[-1] not in folders.committed_steps(directory):
        kept = folders.set_aside(directory / str(steps[-1]), folders.UNFINISHED)
        logging.warning("the save of step %d was cut off; set aside as %s", steps[-1], kept)


def refuse_if_all_damaged(directory: Path) -> None:
    """Checks that a directory without a step is that of a run that has never saved.

    Raises:
        DamagedCheckpointError: there were steps, and all are damaged: such a run does not start
            from scratch without a word.
    """
    there = folders.entries(directory)
    damaged = sorted(x.name for x in there if folders.DAMAGED_STEP.fullmatch(x.name))
    if damaged:
        raise DamagedCheckpointError(
            f"{directory} holds no whole checkpoint, only damaged ones ({', '.join(damaged)}); "
            "check the disk; move them away to train from scratch"
        )
