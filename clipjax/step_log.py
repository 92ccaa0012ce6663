"""What is written of the steps of a run, late enough that no device waits for it.

The clock of samples_per_s stands still while the step of a stage compiles and while evaluations
run. data_wait_fraction is the part of its time in which the devices had finished all they were
given and the next batch was not there.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from clipjax.device_clock import DeviceClock
from clipjax.diagnostics import CollapseAlarm
from clipjax.experiment import Experiment
from clipjax.goodput import Goodput
from clipjax.metric_writers import MetricWriter
from clipjax.plan.mfu import make_mfu
from clipjax.processes import distributed
from clipjax.progress import ProgressBar


class StepLog:
    """The metrics of logging steps on their way from the devices to the files.

    Args:
        experiment: the run.
        writer: of the files.
        progress: for a person.
        devices: what they have left to do; its own to close.
        goodput: where the time goes.
        start: finished steps of the state that the run starts from.
        check_owner: called before each write into the workdir.
    """

    def __init__(
        self,
        experiment: Experiment,
        writer: MetricWriter,
        progress: ProgressBar,
        devices: DeviceClock,
        goodput: Goodput,
        *,
        start: int,
        check_owner: Callable[[], None],
    ) -> None:
        self._experiment, self._settings = experiment, experiment.settings
        self._writer, self._progress, self._devices = writer, progress, devices
        self._goodput = goodput
        self._check_owner = check_owner
        self._clock = time.monotonic()
        self._written_step = start
        self._data_wait_s = 0.0
        self._mfu = make_mfu(experiment.program)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._alarm = CollapseAlarm(steps=self._settings.collapse_steps)

    def is_due(self, step: int) -> bool:
        """Whether the metrics of a finished step are written."""
        return step % self._settings.log_every == 0 or step == self._settings.total_steps

    def give(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps the metrics of a step that is under way, if they are due."""
        if self.is_due(step):
            self._pending = (step, metrics)

    def next_of(self, batches: Iterator[tuple[int, Any]]) -> Any:
        """Takes the next batch, and how long the devices wait for it."""
        begin = time.monotonic()
        _, batch = next(batches)
        waited_s = self._devices.idle_s(begin, time.monotonic())
        self._data_wait_s += waited_s
        self._goodput.move("data", waited_s)
        return batch

    @contextmanager
    def clock_stopped(self, state: Any, cause: str) -> Iterator[None]:
        """Takes what happens inside out of the clock of samples_per_s and of the progress line.

        Args:
            state: of the steps before, which are waited for: they belong to the clock.
            cause: that the time is counted for.
        """
        jax.block_until_ready(state)
        begin = time.monotonic()
        with self._goodput.spending(cause):
            yield
        self.stood_still(time.monotonic() - begin)

    def stood_still(self, seconds: float) -> None:
        """Takes time in which no step ran out of both clocks."""
        self._clock += seconds
        self._progress.stand_still(seconds)

    def flush(self) -> None:
        """Writes the metrics that are due and not written yet."""
        if self._pending is None:
            return
        (step, device_metrics), self._pending = self._pending, None
        metrics = {name: value.item() for name, value in jax.device_get(device_metrics).items()}
        program, loader = self._experiment.program, self._experiment.loader
        index = program.stage_index(step - 1)
        if self._settings.diagnostics:
            own = program.stages[index].settings
            is_chance_known = own.objective.get("name") == "pair" and own.loss.name == "clip"
            size = own.batch_size if is_chance_known else None
            metrics["collapsed"] = float(self._alarm.see(step, metrics, size))
        now = time.monotonic()
        seconds = max(now - self._clock, 1e-9)
        examples = program.num_examples(step) - program.num_examples(self._written_step)
        metrics["samples_per_s"] = examples / seconds
        if self._mfu is not None:
            metrics["mfu"] = self._mfu.of(metrics["samples_per_s"], index)
        metrics["data_wait_fraction"] = self._data_wait_s / seconds
        if len(program.stages) > 1:
            metrics["stage"] = index
        bad: Counter[str] = Counter()
        for counts in distributed.gather_at_lead(f"log/{step}", loader.counts()):
            bad.update(counts)
        metrics |= {f"bad/{reason}": n for reason, n in sorted(bad.items())}
        metrics |= self._goodput.metrics()
        self._clock, self._written_step, self._data_wait_s = now, step, 0.0
        self._check_owner()
        self._writer.write(step, metrics)
        self._goodput.save(now=False)
        self._progress.update(step, {"loss": metrics["loss"], "goodput": metrics["goodput"]})
