"""Which step a run resumes from: the newest whose bytes are those that were written.

Whatever is found wrong is renamed, never deleted, and never passed over without a word.
"""

from pathlib import Path

from absl import logging

from clipjax.checkpoint import folders
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.manifest import DamagedCheckpointError
from clipjax.checkpoint.processes import from_lead
from clipjax.distributed import is_lead

NO_STEP, WAS_DAMAGED, _STOP = -1, -2, -3


def agree_on_newest(directory: Path, *, allow_unfinished: bool) -> int:
    """Verifies the newest step and returns it, the same in every process.

    The lead reads every byte once and decides: two processes that choose by themselves could
    choose differently.

    Args:
        directory: of the step folders.
        allow_unfinished: the newest folder may be a save that was cut off.

    Returns:
        The step, `NO_STEP`, or `WAS_DAMAGED` if it was set aside just now.

    Raises:
        Exception: what the lead met, other than damage; a RuntimeError in the other processes.
    """
    step, error = _STOP, None
    if is_lead():
        try:
            if allow_unfinished:
                set_unfinished_aside(directory)
            step = _verify_newest(directory)
        except Exception as found:
            error = found  # raised below: the others wait for an answer
    step = from_lead(step)
    if step == _STOP:
        raise error or RuntimeError(
            f"the lead process could not read {directory}; its own message says why"
        )
    return step


def _verify_newest(directory: Path) -> int:
    steps = folders.step_folders(directory)
    if not steps:
        return NO_STEP
    step_dir = directory / str(steps[-1])
    try:
        manifest = manifests.read_manifest(step_dir)
        if manifest.step != steps[-1]:
            raise DamagedCheckpointError(f"{step_dir} holds step {manifest.step}")
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
    damaged = folders.damaged_folders(directory)
    if damaged:
        raise DamagedCheckpointError(
            f"{directory} holds no whole checkpoint, only damaged ones ({', '.join(damaged)}); "
            "check the disk; move them away to train from scratch"
        )
