"""The metrics that a run writes while it trains: as JSON lines, to TensorBoard and trackers.

Only the lead process writes.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging
from tensorboardX import SummaryWriter

from clipjax.files import sync, write_file
from clipjax.processes.distributed import is_lead
from clipjax.trackers import Trackers

TRAIN_FILE = "metrics.jsonl"
EVALS_FILE = "evals.jsonl"


def encode_line(step: int, metrics: Mapping[str, Any]) -> str:
    """Writes one JSON object with `step` and the metrics.

    A float is written as the shortest text of its float64 value, so a float32 comes back exactly.
    JSON has no NaN or infinity: such a value is null, and the key `nonfinite` maps its name to
    "nan", "inf" or "-inf".

    Raises:
        ValueError: a value is no number, or a name is taken (`step`, `nonfinite`).
    """
    fields: dict[str, Any] = {"step": int(step)}
    nonfinite = {}
    for name, value in metrics.items():
        if name in ("step", "nonfinite"):
            raise ValueError(f"a metric may not be named {name!r}: the line has that key already")
        array = np.asarray(value)
        if array.ndim or array.dtype.kind not in "biuf" + "V":
            raise ValueError(f"metric {name} = {value!r}: expected one number")
        if array.dtype.kind in "biu":
            fields[name] = int(array)
            continue
        number = float(array)
        fields[name] = number if math.isfinite(number) else None
        if fields[name] is None:
            nonfinite[name] = str(number)
    if nonfinite:
        fields["nonfinite"] = nonfinite
    return json.dumps(fields, allow_nan=False)


class JsonLines:
    """A file of one JSON object a line, in which every step stands once, in order.

    Attributes:
        last_step: of the last line; -1 where there is none.
    """

    def __init__(self, path: str | os.PathLike[str], *, start_step: int = 0) -> None:
        self.path = Path(path)
        self.last_step = self._keep_until(start_step)
        self._file = self._open()

    def _keep_until(self, last: int) -> int:
        """Drops lines after step `last` and a line that was cut off; returns the last step.

        Raises:
            ValueError: a line among those to keep cannot be read.
        """
        if not self.path.exists():
            return -1
        data = self.path.read_bytes()
        lines = data.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # the process was killed while it wrote
        steps = [_step_of(line) for line in lines]
        known = [(number, step) for number, step in enumerate(steps, 1) if step is not None]
        end = max((number for number, step in known if step <= last), default=0)
        bad = [number for number, step in enumerate(steps, 1) if step is None]
        if bad and (bad[0] <= end or not known):
            raise ValueError(
                f"{self.path}, line {bad[0]} is no JSON object with a step; repair the line or "
                "move the file away"
            )
        if bad:  # the machine stopped before the end was on its disk
            logging.warning(
                "%s: dropped %d lines after step %d that are damaged", self.path, len(bad), last
            )
        kept = [
            (line, step)
            for line, step in zip(lines[:end], steps[:end], strict=True)
            if step is not None and step <= last
        ]
        if (text := b"".join(line for line, _ in kept)) != data:
            write_file(self.path, text)
            logging.info("%s: kept the lines up to step %d", self.path, last)
        return max((step for _, step in kept), default=-1)

    def _open(self) -> TextIO:
        file = self.path.open("a", encoding="utf-8")
        self._has_links = os.fstat(file.fileno()).st_nlink > 0  # not every file store counts them
        return file

    def check(self) -> None:
        """Checks that the file is still where it was opened.

        Raises:
            FileNotFoundError: it, or its folder, was deleted or replaced.
        """
        links = os.fstat(self._file.fileno()).st_nlink
        if not self.path.exists() or (self._has_links and links == 0):
            raise FileNotFoundError(
                f"{self.path} was deleted or replaced while the run wrote to it: what it has "
                "written is lost. Put the workdir back, or start again with another workdir"
            )

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        self.check()
        sync(self.path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line; it is with the operating system when this returns.

        Raises:
            ValueError: the step is not later than that of the last line.
        """
        if step <= self.last_step:
            raise ValueError(
                f"{self.path}: step {step} comes after step {self.last_step}; every step stands "
                "once, in order"
            )
        self.check()
        self._file.write(encode_line(step, metrics) + "\n")
        self._file.flush()
        self.last_step = step

    def rewrite(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line after dropping those of the same or later steps."""
        if step <= self.last_step:
            self._file.close()
            self.last_step = self._keep_until(step - 1)
            self._file = self._open()
        self.write(step, metrics)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: bytes) -> int | None:
    """The step of a line; None where it has none that can be read."""
    try:
        return int(json.loads(line.decode("utf-8"))["step"])
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return None


class MetricWriter(contextlib.AbstractContextManager):
    """Writes training metrics to `metrics.jsonl`, evaluations to `evals.jsonl`, both as events.

    In the processes other than the lead, nothing.

    Args:
        workdir: the workdir of the run.
        start_step: finished steps of the state that the run starts from.
        log_every: steps from one line of training metrics to the next, to notice what is missing.
        is_finished: whether no training metrics follow. Then a file that cannot be read is left as
            it is, with a warning; else it is an error.
        tensorboard: write event files to `<workdir>/tensorboard` as well.
        trackers: take the metrics, too; closed with the writer.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        start_step: int = 0,
        log_every: int | None = None,
        is_finished: bool = False,
        tensorboard: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self._active, self._trackers = is_lead(), trackers
        if not self._active:
            return
        workdir = Path(workdir).expanduser()
        workdir.mkdir(parents=True, exist_ok=True)
        self._train, self._evals = (
            _open_lines(workdir / name, start_step, is_finished)
            for name in (TRAIN_FILE, EVALS_FILE)
        )
        if self._train is not None and log_every is not None:
            _notice_gap(self._train, start_step, log_every)
        self._events, self._folder = None, workdir / "tensorboard"
        self._older_events = set(self._folder.glob("*"))
        if tensorboard:
            # TensorBoard hides what an earlier process wrote from this step on.
            self._events = SummaryWriter(
                str(self._folder), purge_step=start_step + 1, write_to_disk=True
            )

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the training metrics of a step; a step is written once.

        Raises:
            ValueError: a step comes again, or a value is no number.
        """
        if self._active:
            if self._train is not None:
                self._train.write(step, metrics)
            self._write_events("train", step, metrics)

    def write_evals(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the evaluations of a step; a step that is evaluated again replaces its line."""
        if self._active:
            if self._evals is not None:
                self._evals.rewrite(step, metrics)
            self._write_events("eval", step, metrics)

    @property
    def evaluated_step(self) -> int | None:
        """The last step that stands in `evals.jsonl`; None where none does."""
        last = self._evals.last_step if self._active and self._evals is not None else -1
        return last if last >= 0 else None

    def _write_events(self, group: str, step: int, metrics: Mapping[str, Any]) -> None:
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(f"{group}/{name}", float(value), step)
        if self._trackers is not None:
            numbers = {name: float(value) for name, value in metrics.items()}
            self._trackers.write(group, step, numbers)

    def sync(self) -> None:
        """Waits until all is on the disk, before a checkpoint is that goes on from it.

        Raises:
            FileNotFoundError: the workdir was deleted or replaced.
        """
        if not self._active:
            return
        for lines in (self._train, self._evals):
            if lines is not None:
                lines.sync()
        if self._events is not None:
            self._events.flush()
            for path in set(self._folder.glob("*")) - self._older_events:
                sync(path)

    def close(self) -> None:
        """Flushes and closes all files."""
        if self._active:
            for lines in (self._train, self._evals):
                if lines is not None:
                    lines.close()
            if self._events is not None:
                self._events.close()
            if self._trackers is not None:
                self._trackers.close()


def keep_metrics(workdir: Path, name: str) -> None:
    """Copies the files of metrics to `metrics.<name>.jsonl` and so on, before lines are dropped."""
    for file in (TRAIN_FILE, EVALS_FILE):
        path = workdir / file
        if path.exists():
            shutil.copy2(path, path.with_suffix(f".{name}.jsonl"))


def _open_lines(path: Path, start_step: int, is_finished: bool) -> JsonLines | None:
    try:
        return JsonLines(path, start_step=start_step)
    except ValueError as error:
        if not is_finished:
            raise
        logging.warning("%s. The run is finished, and leaves the file as it is", error)
        return None


def _notice_gap(lines: JsonLines, start_step: int, log_every: int) -> None:
    """Says which lines should be there and are not."""
    last = max(lines.last_step, 0)
    missing = start_step // log_every - last // log_every
    if missing > 0:
        logging.warning(
            "%s has no line from step %d to step %d, about %d lines with config.log_every = %d: "
            "they were lost in a crash, or are in another workdir",
            *(lines.path, last + 1, start_step, missing, log_every),
        )
