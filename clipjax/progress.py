"""What a person sees of a run while it trains: a bar, or a line now and then."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from clipjax.processes.distributed import is_lead

_PLAIN_INTERVAL_S = 15.0  # between two lines where there is no terminal


class ProgressBar(contextlib.AbstractContextManager):
    """Shows step, rate and remaining time: a bar on a terminal, else a line now and then.

    The rate is the mean since the start, without the time that the run says it stood still
    (`stand_still`). A line holds the newest metrics that were given, with their step where that is
    an earlier one.

    Args:
        total_steps: steps of the whole run.
        num_examples: samples of so many first steps, over all processes.
        start_step: finished steps of the state that the run starts from.
        stream: where to show it; standard error if None.
        interval_s: seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        num_examples: Callable[[int], int],
        start_step: int = 0,
        stream: TextIO | None = None,
        interval_s: float = _PLAIN_INTERVAL_S,
    ) -> None:
        self._total, self._start, self._step = total_steps, start_step, start_step
        self._num_examples = num_examples
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
        seconds = max(now - self._begin, 1e-9)
        rate = (step - self._start) / seconds
        examples = self._num_examples(step) - self._num_examples(self._start)
        if metrics:
            words = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
            self._metrics = (step, words)
        samples = f"{examples / seconds:.0f} samples/s"
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
