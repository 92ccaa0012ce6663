"""What a run writes while it trains: metrics as JSON lines and TensorBoard, progress for a person.

Only the lead process writes.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from clipjax.distributed import is_lead
from clipjax.files import write_file

TRAIN_FILE = "metrics.jsonl"
EVALS_FILE = "evals.jsonl"
_PLAIN_INTERVAL_S = 15.0  # between two progress lines where there is no terminal


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
        self._file = self.path.open("a", encoding="utf-8")

    def _keep_until(self, last: int) -> int:
        """Drops lines after step `last` and a line that was cut off; returns the last step."""
        if not self.path.exists():
            return -1
        text = self.path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the process was killed while it wrote
        steps = [self._step_of(line, number) for number, line in enumerate(lines, 1)]
        kept = [line for line, step in zip(lines, steps, strict=True) if step <= last]
        if "".join(kept) != text:
            write_file(self.path, "".join(kept))
            logging.info("%s: kept the lines up to step %d", self.path, last)
        return max((step for step in steps if step <= last), default=-1)

    def _step_of(self, line: str, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{self.path}, line {number} is no JSON object with a step; repair the line or "
                "move the file away"
            ) from error

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
        self._file.write(encode_line(step, metrics) + "\n")
        self._file.flush()
        self.last_step = step

    def rewrite(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line after dropping those of the same or later steps."""
        if step <= self.last_step:
            self._file.close()
            self.last_step = self._keep_until(step - 1)
            self._file = self.path.open("a", encoding="utf-8")
        self.write(step, metrics)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricWriter(contextlib.AbstractContextManager):
    """Writes training metrics to `metrics.jsonl`, evaluations to `evals.jsonl`, and both as events.

    In the processes other than the lead, nothing.

    Args:
        workdir: the workdir of the run.
        start_step: finished steps of the state that the run starts from.
        tensorboard: write event files to `<workdir>/tensorboard` as well.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, start_step: int = 0, tensorboard: bool = True
    ) -> None:
        self._active = is_lead()
        if not self._active:
            return
        workdir = Path(workdir).expanduser()
        workdir.mkdir(parents=True, exist_ok=True)
        self._train = JsonLines(workdir / TRAIN_FILE, start_step=start_step)
        self._evals = JsonLines(workdir / EVALS_FILE, start_step=start_step)
        self._events = None
        if tensorboard:
            # TensorBoard hides what an earlier process wrote from this step on.
            self._events = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=True
            )

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the training metrics of a step; a step is written once.

        Raises:
            ValueError: a step comes again, or a value is no number.
        """
        if self._active:
            self._train.write(step, metrics)
            self._write_events("train", step, metrics)

    def write_evals(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the evaluations of a step; a step that is evaluated again replaces its line."""
        if self._active:
            self._evals.rewrite(step, metrics)
            self._write_events("eval", step, metrics)

    @property
    def evaluated_step(self) -> int | None:
        """The last step that stands in `evals.jsonl`; None where none does."""
        return self._evals.last_step if self._active and self._evals.last_step >= 0 else None

    def _write_events(self, group: str, step: int, metrics: Mapping[str, Any]) -> None:
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(f"{group}/{name}", float(value), step)

    def close(self) -> None:
        """Flushes and closes all files."""
        if self._active:
            self._train.close()
            self._evals.close()
            if self._events is not None:
                self._events.close()


class ProgressBar(contextlib.AbstractContextManager):
    """Shows step, rate and remaining time: a bar on a terminal, else a line now and then.

    The rate is the mean since the start, without the time that the run says it stood still
    (`stand_still`). A line holds the newest metrics that were given, with their step where that is
    an earlier one.

    Args:
        total_steps: steps of the whole run.
        batch_size: samples a step, over all processes.
        start_step: finished steps of the state that the run starts from.
        stream: where to show it; standard error if None.
        interval_s: seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        batch_size: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        interval_s: float = _PLAIN_INTERVAL_S,
    ) -> None:
        self._total, self._start, self._step = total_steps, start_step, start_step
        self._batch_size = batch_size
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._begin = self._shown = time.monotonic()
        self._metrics: tuple[int, str] | None = None  # the newest, in words, and their step
        self._active = is_lead()
        self._bar = None
        if self._active and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows that `step` steps are finished; call it at every step, it shows what is due."""
        if not self._active:
            return
        is_new, now = step > self._step, time.monotonic()
        self._step = step
        rate = (step - self._start) / max(now - self._begin, 1e-9)
        if metrics:
            words = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
            self._metrics = (step, words)
        samples = f"{rate * self._batch_size:.0f} samples/s"
        if self._bar is not None:
            if metrics:
                self._bar.set_postfix_str(f"{samples}, {words}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._shown >= self._interval_s or (step == self._total and is_new):
            self._shown = now
            remaining_s = (self._total - step) / rate if rate > 0 else math.inf
            self._stream.write(
                f"step {step}/{self._total}  {samples}  {_duration(remaining_s)} left"
                f"{self._newest_metrics()}\n"
            )
            self._stream.flush()

    def stand_still(self, seconds: float) -> None:
        """Takes time in which no step ran, such as a compilation, out of the rate."""
        self._begin += seconds

    def _newest_metrics(self) -> str:
        if self._metrics is None:
            return ""
        step, words = self._metrics
        return f"  {words}" if step == self._step else f"  {words} at step {step}"

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
