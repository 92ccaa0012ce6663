"""Saving and restoring the state of a run: asynchronous, atomic, verified.

A save goes through these stages; a process may die between any two of them:

    copy the state | Orbax writes <step>.orbax-checkpoint-tmp and renames it to <step>
    | hash leaves and files | write the manifest, flush, rename: the step counts from here on
    | delete the steps that retention gives up

The loop waits for the copy only (and where several processes save, until all have begun). On a CPU
its memory is kept for the next one. Everything after it runs in a thread, whose error comes out of
the next `save`, `check_for_errors`, `wait_until_finished` or `close`, and again out of each later
one: a run cannot end well after a save that failed.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from clipjax import faults
from clipjax.checkpoint import choice, folders
from clipjax.checkpoint import manifest as manifests
from clipjax.checkpoint.best import BestStep
from clipjax.checkpoint.manifest import DamagedCheckpointError, commit_step, hash_own_files
from clipjax.checkpoint.ownership import WorkdirTakenError
from clipjax.checkpoint.restore import restore_step
from clipjax.checkpoint.resume import check_resume
from clipjax.checkpoint.snapshot import (
    HostMemory,
    NonFiniteStateError,
    Snapshot,
    check_arrays,
    check_finite,
    hash_blocks,
    record_leaves,
    take_snapshot,
)
from clipjax.checkpoint.tokenizer import attach_tokenizer
from clipjax.processes import peers, process_log
from clipjax.processes.distributed import gather, gather_at_lead, gather_errors, is_lead
from clipjax.trees import count_bytes

MAX_FALLBACKS = 2
FREE_SPACE_FACTOR = 1.2  # of the state's bytes


class CheckpointSaveError(RuntimeError):
    """A checkpoint could not be written; the ones before it are intact."""


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
        self._check_owner = check_owner
        self._keep = keep
        self._keep_every = keep_every
        self._best = BestStep(best, self.directory)
        self._metadata = manifests.check_metadata(metadata)
        # Read now: the file may be gone by the time that a step is committed.
        contract, self._attachments = attach_tokenizer(self._metadata["contract"])
        self._metadata["contract"] = contract
        self.restored: manifests.Manifest | None = None
        self._orbax: ocp.CheckpointManager | None = None
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._error_was_raised = False

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # The error that is on its way counts, and the other processes may not come here.
            self._release()
            if self._error is not None and not self._error_was_raised:
                logging.error("%s", self._error)

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
        if is_lead():
            self._check_owner()
        faults.point("save.before_copy", step)
        check_arrays(state)
        self._open()
        self.check_free_space(count_bytes(state))
        snapshot = take_snapshot(state, self._memory)
        skipped = int(getattr(state, "skipped_in_a_row", 0))
        # Of one process's own copy nothing is in a hurry. Several begin together, and what is
        # still the state itself has to be read before the next step takes it.
        begins_here = jax.process_count() > 1 or not snapshot.is_copy
        if begins_here:
            try:
                self._begin(step, snapshot)
            except Exception as error:
                self._fail(step, error)
                self.check_for_errors()
        self._thread = threading.Thread(
            target=self._finish,
            args=(step, snapshot, bad_examples, begins_here, self._best.step, skipped),
            name="commit",
        )
        self._thread.start()
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
        self._join()
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
        if self._error is not None:
            self._error_was_raised = True
            raise self._error

    def wait_until_finished(self) -> None:
        """Waits until the last save is committed in all processes, and raises its error."""
        if self._thread is not None:
            self._join()
            # The others finish before the lead writes the manifest, and an error that only one of
            # them met stops them all.
            if (failed := gather_errors(self._error)) and self._error is None:
                self._error = CheckpointSaveError(
                    f"the last checkpoint could not be written to {self.directory}: {failed}"
                )
        self.check_for_errors()

    def close(self) -> None:
        """Waits for the last save; raises its error unless it was raised before."""
        if not self._error_was_raised:
            self.wait_until_finished()
        self._release()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _release(self) -> None:
        self._join()
        if self._orbax is not None and self._error is None:
            self._orbax.close()
        self._orbax = None

    # Saving

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

    def _open(self) -> ocp.CheckpointManager:
        """Opens Orbax's manager at the first save: a process that only restores needs none."""
        if self._orbax is None:
            if is_lead():
                self.directory.mkdir(parents=True, exist_ok=True)
                choice.set_unfinished_aside(self.directory)
                folders.clear_half_written(self.directory)  # Orbax would fail where it cannot
            self._orbax = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    # Orbax would delete an old step before the new one is hashed, so retention
                    # is ours (clipjax/checkpoint/folders.py).
                    preservation_policy=preservation_policy.PreserveAll(),
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                ),
            )
        return self._orbax

    def check_free_space(self, state_bytes: int) -> None:
        """Checks that the disk has room for a checkpoint; a collective.

        Raises:
            CheckpointSaveError: it has not.
        """
        needed = int(FREE_SPACE_FACTOR * state_bytes)
        existing = next(p for p in (self.directory, *self.directory.parents) if p.exists())
        free = gather(shutil.disk_usage(existing).free)[0]
        if free < needed:
            self._error = CheckpointSaveError(
                f"no space for a checkpoint in {self.directory}: it needs about "
                f"{needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; make space or lower "
                "config.checkpoint.keep, then start again (older checkpoints are intact)"
            )
            self.check_for_errors()

    def _begin(self, step: int, snapshot: Snapshot) -> None:
        """Lets Orbax begin to write a state that is finite."""
        check_finite(snapshot.state, step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(snapshot.state),
            config=ocp.args.JsonSave(self._metadata["config"]),
        )
        # Orbax moves small host values to devices, which the loop's transfer guard forbids.
        with jax.transfer_guard("allow"):
            self._open().save(step, args=items, force=True)
        faults.point("save.mid_write", step)

    def _write(self, step: int, snapshot: Snapshot, has_begun: bool) -> dict[str, Any]:
        """Waits until all processes have written their shards; returns what this one hashed."""
        if not has_begun:
            self._begin(step, snapshot)
        blocks = hash_blocks(snapshot)  # while Orbax writes
        assert self._orbax is not None
        self._orbax.wait_until_finished()
        self._orbax.check_for_errors()
        faults.point("save.before_manifest", step)
        step_dir = self.directory / str(step)
        files = {} if is_lead() else hash_own_files(step_dir, jax.process_index())
        return {"blocks": blocks, "files": files}

    def _finish(
        self,
        step: int,
        snapshot: Snapshot,
        bad_examples: Mapping[str, Any] | None,
        has_begun: bool,
        best: int | None,
        skipped_in_a_row: int,
    ) -> None:
        """Commits a step; runs in a thread."""
        found: dict[str, Any] = {}
        try:
            found = self._write(step, snapshot, has_begun)
        except BaseException as error:
            self._fail(step, error)
            found = {"error": f"{type(error).__name__}: {error}"}
            if is_lead():
                return  # the others may wait for this one
        try:
            # Those that failed say so: the lead waits for all.
            everybody = gather_at_lead(f"digests/{step}", found)
            if is_lead():
                for number, each in enumerate(everybody):
                    if "error" in each:
                        raise RuntimeError(f"process {number}: {each['error']}")
                self._check_owner()
                step_dir = self.directory / str(step)
                commit_step(
                    step_dir,
                    step,
                    record_leaves(
                        snapshot, [block for each in everybody for block in each["blocks"]]
                    ),
                    self._metadata,
                    self._attachments,
                    bad_examples,
                    metrics=self._best.metrics_of(step),
                    skipped_in_a_row=skipped_in_a_row,
                    known={k: v for each in everybody for k, v in each["files"].items()},
                )
                logging.info("saved step %d to %s", step, step_dir)
                faults.point("save.before_delete", step)
                folders.delete_old_steps(
                    self.directory, keep=self._keep, keep_every=self._keep_every, best=best
                )
        except BaseException as error:
            self._fail(step, error)

    def _fail(self, step: int, error: BaseException) -> None:
        """Keeps a save's error for the main thread, and gives back the space it took."""
        # What is there of the first is another's, and the second wrote nothing.
        if isinstance(error, WorkdirTakenError | NonFiniteStateError):
            self._error = error
            return
        text = f"{type(error).__name__}: {error}"
        if peers.is_theirs(error):  # which one, and how, the end of this process says
            process_log.write(f"save of step {step}: {text}\n")
            text = "another process of the run is gone"
        logging.error("save of step %d failed: %s", step, text)
        full = getattr(error, "errno", None) == errno.ENOSPC or "RESOURCE_EXHAUSTED" in text
        reason = "no space left on the device" if full or "No space left" in text else text
        if jax.process_count() == 1 and self._orbax is not None:
            with contextlib.suppress(Exception):  # what it still writes would outlive the sweep
                self._orbax.wait_until_finished()
        if is_lead():
            with contextlib.suppress(OSError):  # a failed try would keep a full disk full
                folders.sweep(self.directory, folders.TMP)
        failure = CheckpointSaveError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {reason}; "
            "older checkpoints are intact: remove the cause and start again"
        )
        failure.__cause__ = error
        self._error = failure
