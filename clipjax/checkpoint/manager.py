"""The checkpoints of a run: saved in the background (saving.py), restored by contents, verified."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.checkpoint import choice, folders
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.best import BestStep
from clipjax.checkpoint.manifest import DamagedCheckpointError
from clipjax.checkpoint.restore import restore_step
from clipjax.checkpoint.resume import check_resume
from clipjax.checkpoint.saving import Saver
from clipjax.checkpoint.tokenizer import attach_tokenizer
from clipjax.processes.distributed import gather, is_lead

MAX_FALLBACKS = 2


class CheckpointManager:
    """Keeps the checkpoints of one run in `<directory>/<step>/`.

    All processes of a run make one and call the same methods in the same order. Not for use by
    several threads.

    Args:
        directory: of the step folders, `<workdir>/checkpoints`; on a file system that all
            processes share.
        keep: how many of the newest steps stay.
        keep_every: multiples of this step number stay for good.
        best: a metric; the step with its largest value stays, too, and with `-` in front that with
            the smallest.
        metadata: what the run is: `config`, `contract`, `dataset_fingerprint`,
            `global_batch_size`, `seed`. Stored with each step and compared at resume. The file of
            the contract's tokenizer is copied into each step.
        check_owner: called by the lead before it writes; raises if the directory is another's.

    Attributes:
        restored: the manifest of the step that was restored, None where none was.

    Raises:
        ValueError: bad arguments.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every: int | None = None,
        best: str = "",
        metadata: Mapping[str, Any],
        check_owner: Callable[[], None] = lambda: None,
    ) -> None:
        if "://" in os.fspath(directory):
            raise ValueError(
                f"checkpoint directory {os.fspath(directory)!r}: expected a path of a mounted file "
                "system; mount the bucket (gcsfuse) and give the path"
            )
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"config.checkpoint.{name} = {value}: must be at least 1")
        self.directory = Path(directory).expanduser().absolute()
        self._best = BestStep(best, self.directory)
        self._metadata = manifests.check_metadata(metadata)
        # Read now: the file may be gone by the time that a step is committed.
        contract, attachments = attach_tokenizer(self._metadata["contract"])
        self._metadata["contract"] = contract
        self.restored: manifests.Manifest | None = None
        self._saver = Saver(
            self.directory,
            keep=keep,
            keep_every=keep_every,
            best=self._best,
            metadata=self._metadata,
            attachments=attachments,
            check_owner=check_owner,
        )

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # the other processes may not come here
            self._saver.abandon()

    def save(
        self,
        step: int,
        state: Any,
        *,
        bad_examples: Mapping[str, Any] | None = None,
        block: bool = False,
    ) -> None:
        """Saves a state; returns once it is copied, and the caller may donate it then.

        Args:
            step: number of finished steps.
            state: tree of jax.Arrays.
            bad_examples: what was replaced of the data so far, for the manifest.
            block: wait until the step is committed.

        Raises:
            NonFiniteStateError: the parameters hold NaN or infinity; where one process copies its
                state, as on a CPU, it comes out later, as every error of a save.
            CheckpointSaveError: no space, or an earlier save failed.
            ValueError: the directory holds a later step already, or a leaf is no array of numbers.
        """
        self.wait_until_finished()  # one save at a time; usually the last one is long done
        if self._is_saved(step):
            return
        self._saver.start(step, state, bad_examples)
        if block:
            self.wait_until_finished()

    def measured(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes note of what was measured at a step; a collective.

        A step that is saved already gets it into its manifest, and a later one as it is saved.

        Returns:
            Whether it is the best step so far by `best`.

        Raises:
            ValueError: the evaluation that `best` names does not measure it.
        """
        self._best.see(step, metrics)
        found = self._best.metrics_of(step)
        if found:
            self.wait_until_finished()
            if self._is_saved(step) and is_lead():
                step_dir = self.directory / str(step)
                manifest = manifests.read_manifest(step_dir)
                manifests.write_manifest(step_dir, dataclasses.replace(manifest, metrics=found))
        return self._best.step == step

    def restore_latest(self, abstract_state: Any) -> tuple[Any, int] | None:
        """Restores the newest step that is whole.

        A damaged step is set aside as `<step>.damaged` with an ERROR in the log, and the one
        before it is tried, twice at most.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with shardings; another mesh or number
                of processes than at the save is fine.

        Returns:
            (state, step), or None if this run has never saved.

        Raises:
            DamagedCheckpointError: no whole step was found within the fallbacks.
            StorageError: the storage failed more than once; nothing is renamed for it.
            ValueError: the checkpoint is of another config, tree, shape or dtype.
        """
        self.wait_until_finished()
        with choice.condemning_nothing(self.directory):
            return self._restore_newest(abstract_state)

    def _restore_newest(self, abstract_state: Any) -> tuple[Any, int] | None:
        for attempt in range(MAX_FALLBACKS + 1):
            step = choice.agree_on_newest(self.directory, allow_unfinished=attempt == 0)
            if step == choice.NO_STEP:
                choice.refuse_if_all_damaged(self.directory)
                return None
            if step == choice.WAS_DAMAGED:
                continue
            step_dir = self.directory / str(step)
            manifest = choice.read_in_all(step_dir)
            check_resume(manifest, self._metadata, where=str(step_dir))
            try:
                state = restore_step(step_dir, manifest, abstract_state)
            except DamagedCheckpointError as error:
                choice.condemn(step_dir, manifest, error)
                continue
            self.restored = manifest
            logging.info("restored step %d from %s", step, step_dir)
            return state, step
        raise DamagedCheckpointError(
            f"the newest {MAX_FALLBACKS + 1} checkpoints in {self.directory} are damaged and were "
            "renamed to <step>.damaged; check the disk, then start again to try older ones"
        )

    def restore_from(self, path: str | os.PathLike[str], abstract_state: Any) -> tuple[Any, int]:
        """Restores the state of another run's checkpoint; nothing there is renamed or skipped.

        Args:
            path: a workdir, its checkpoints folder or one step's folder.
            abstract_state: as for `restore_latest`.

        Returns:
            (state, step).

        Raises:
            DamagedCheckpointError: it is not what was written.
            ValueError: no checkpoint is there, or it is of another config, tree, shape or dtype.
        """
        found = choice.open_checkpoint(path)
        step_dir, manifest = found.step_dir, found.manifest
        with choice.naming_older_steps(step_dir):
            manifests.verify_files(step_dir, manifest.files)
            check_resume(manifest, self._metadata, where=str(step_dir))
            self.restored = manifest
            return restore_step(step_dir, manifest, abstract_state), manifest.step

    def latest_step(self) -> int | None:
        """The newest step that is committed; its content is verified only when it is restored."""
        return max(folders.committed_steps(self.directory), default=None)

    def good_steps(self) -> list[int]:
        """The two newest steps that no skipped ones precede, the last save included."""
        self._saver.join()
        return folders.good_steps(self.directory)

    def go_back_to(self, step: int) -> bool:
        """Sets the steps after one aside, as `<step>.after_<that one>`; a collective.

        Where that was done before, it is not done again: the same command line starts the run
        again after it was stopped.

        Returns:
            Whether it was done now.

        Raises:
            ValueError: there is no such step.
        """
        self.wait_until_finished()
        is_done, wrong = False, ""
        if is_lead():
            try:
                is_done = folders.set_later_aside(self.directory, step)
            except ValueError as error:
                wrong = str(error)
        is_done, wrong = gather((is_done, wrong))[0]
        if wrong:
            raise ValueError(wrong)
        return is_done

    def check_for_errors(self) -> None:
        """Raises the error of a save that failed in the background, if there is one."""
        self._saver.check_for_errors()

    def check_free_space(self, state_bytes: int) -> None:
        """Checks that the disk has room for a checkpoint; a collective.

        Raises:
            CheckpointSaveError: it has not.
        """
        self._saver.check_free_space(state_bytes)

    def wait_until_finished(self) -> None:
        """Waits until the last save is committed in all processes, and raises its error."""
        self._saver.wait()

    def close(self) -> None:
        """Waits for the last save; raises its error unless it was raised before."""
        self._saver.close()

    def _is_saved(self, step: int) -> bool:
        """Whether this very step is committed: a run stopped right after it was resumed."""
        latest = gather(self.latest_step() if is_lead() else None)[0]
        if latest is None:
            return False
        if step < latest:
            raise ValueError(
                f"step {step} cannot be saved: {self.directory} holds step {latest} already; "
                "restore it first, or give another workdir"
            )
        return step == latest
