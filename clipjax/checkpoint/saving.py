"""Saving a state: one step at a time, in the background, committed when it is whole.

A save goes through these stages; a process may die between any two of them:

    copy the state | Orbax writes <step>.orbax-checkpoint-tmp and renames it to <step>
    | hash leaves and files | write the manifest, flush, rename: the step counts from here on
    | delete the steps that retention gives up

The loop waits for the copy only (and where several processes save, until all have begun). On a CPU
its memory is kept for the next one. Everything after it runs in a thread, whose error comes out of
the next `start`, `check_for_errors` or `wait`, and again out of each later one: a run cannot end
well after a save that failed.
"""

import contextlib
import errno
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
from clipjax.checkpoint.best import BestStep
from clipjax.checkpoint.manifest import commit_step, hash_own_files
from clipjax.checkpoint.ownership import WorkdirTakenError
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
from clipjax.processes import peers, process_log
from clipjax.processes.distributed import gather, gather_at_lead, gather_errors, is_lead
from clipjax.trees import count_bytes

FREE_SPACE_FACTOR = 1.2  # of the state's bytes


class CheckpointSaveError(RuntimeError):
    """A checkpoint could not be written; the ones before it are intact."""


class Saver:
    """Writes the steps of a run, as all its processes ask for them in the same order.

    Args:
        directory: of the step folders.
        keep: how many of the newest steps stay.
        keep_every: multiples of this step number stay for good.
        best: the step that stays, too, and what was measured at each.
        metadata: what the run is, for the manifests.
        attachments: files that each step holds, by their path in it.
        check_owner: called by the lead before it writes; raises if the directory is another's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        keep_every: int | None,
        best: BestStep,
        metadata: Mapping[str, Any],
        attachments: Mapping[str, bytes],
        check_owner: Callable[[], None],
    ) -> None:
        self.directory = directory
        self._keep = keep
        self._keep_every = keep_every
        self._best = best
        self._metadata = metadata
        self._attachments = attachments
        self._check_owner = check_owner
        self._orbax: ocp.CheckpointManager | None = None
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._error_was_raised = False

    def start(self, step: int, state: Any, bad_examples: Mapping[str, Any] | None) -> None:
        """Begins to save a state; returns once it is copied. The save before it is finished.

        Raises:
            NonFiniteStateError, CheckpointSaveError: as `CheckpointManager.save`.
            ValueError: a leaf is no array of numbers.
        """
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

    def check_for_errors(self) -> None:
        """Raises the error of a save that failed in the background, if there is one."""
        if self._error is not None:
            self._error_was_raised = True
            raise self._error

    def wait(self) -> None:
        """Waits until the last save is committed in all processes, and raises its error."""
        if self._thread is not None:
            self.join()
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
            self.wait()
        self._release()

    def abandon(self) -> None:
        """Closes while another error is on its way, which counts; that of a save is told."""
        self._release()
        if self._error is not None and not self._error_was_raised:
            logging.error("%s", self._error)

    def join(self) -> None:
        """Waits for this process's part of the last save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _release(self) -> None:
        self.join()
        if self._orbax is not None and self._error is None:
            self._orbax.close()
        self._orbax = None

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
