"""Tracing some steps of a run, and the table of their kernels."""

import json
import re
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax.files import write_file
from clipjax.processes.distributed import is_lead
from clipjax.profiling.kernel_times import streams, summarise

FOLDER = "profile"  # of the workdir
_MOST_STEPS = 100  # a trace of so many is large already
_SHOWN = 10  # kernels in the log


def parse_steps(text: str) -> tuple[int, int]:
    """Reads `10:15`: steps 10 to 15, both of them, numbered as in metrics.jsonl.

    Raises:
        ValueError: it is something else, or more steps than a trace holds well.
    """
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip())
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last < first + _MOST_STEPS:
        raise ValueError(
            f"--profile_steps={text!r}: expected FIRST:LAST, such as 10:15, steps from 1, at most "
            f"{_MOST_STEPS} of them"
        )
    return first, last


class StepProfile:
    """Traces steps of the lead process; a fault of the profiler is said, and the run goes on.

    Args:
        workdir: of the run; the trace and the table go into its folder `profile`.
        steps: the first and the last one; None traces none.
        start_step: finished steps of the state that the run starts from.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None, start_step: int) -> None:
        self._steps = steps if is_lead() else None
        self._active = False
        self._annotation: Any = None
        if self._steps is None:
            return
        first, last = self._steps
        self.folder = workdir / FOLDER / f"steps_{first}_{last}"
        if first <= start_step:
            self._steps = None
            logging.warning(
                "--profile_steps=%d:%d: nothing is traced, the run goes on from step %d",
                *(first, last, start_step),
            )
        elif first == start_step + 1:
            logging.warning(
                "--profile_steps=%d:%d: step %d is the first of this start, and compiles",
                *(first, last, first),
            )

    def before(self, step: int, state: Any) -> None:
        """Begins the trace, if it is due.

        Args:
            step: that comes next, from 1.
            state: that it starts from; waited for, so that no earlier step is in the trace.
        """
        if self._steps is None:
            return
        try:
            if step == self._steps[0]:
                jax.block_until_ready(state)
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # its events would be most of the trace
                jax.profiler.start_trace(str(self.folder), profiler_options=options)
                self._active = True
            if self._active:
                self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
                self._annotation.__enter__()
        except Exception as error:
            self._give_up(error)

    def after(self, step: int, state: Any) -> float:
        """Ends the trace behind its last step, and writes the table.

        Args:
            step: that was begun.
            state: that it leaves; waited for, at the last one.

        Returns:
            Seconds that the table took, in which no step ran.
        """
        if self._steps is None or not self._active:
            return 0.0
        begin = time.monotonic()
        try:
            self._annotation.__exit__(None, None, None)
            if step == self._steps[1]:
                jax.block_until_ready(state)
                begin = time.monotonic()
                self._stop()
                self._write(step - self._steps[0] + 1)
                self._steps = None
                return time.monotonic() - begin
        except Exception as error:
            self._give_up(error)
            return time.monotonic() - begin
        return 0.0

    def close(self) -> None:
        """Ends a trace whose last step did not come; says so of one that was never begun."""
        if self._steps is not None and not self._active:
            logging.warning(
                "--profile_steps=%d:%d: nothing was traced, the run ended before step %d",
                *self._steps,
                self._steps[0],
            )
        if self._active:
            logging.warning("the run ends inside of --profile_steps; there is a trace, no table")
            self._steps = None
            self._stop()

    def _stop(self) -> None:
        self._active = False
        jax.profiler.stop_trace()

    def _give_up(self, error: Exception) -> None:
        self._steps = None
        logging.warning(
            "the steps are not profiled, and the run goes on: %s: %s", type(error).__name__, error
        )

    def _write(self, steps: int) -> None:
        newest = max(self.folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        data = jax.profiler.ProfileData.from_file(str(newest))
        found = summarise(streams(data), {}, steps=steps)
        write_file(self.folder / "kernels.json", json.dumps(found, indent=1) + "\n")
        write_file(self.folder / "kernels.txt", kernel_table(found, steps=steps) + "\n")
        logging.info(
            "%s\nthe trace is in %s: tensorboard --logdir, or Perfetto",
            *(kernel_table(found, steps=steps, most=_SHOWN), self.folder),
        )


def kernel_table(found: dict[str, Any], *, steps: int, most: int | None = None) -> str:
    """The kernels that took the most time, a line each.

    Args:
        found: of `summarise`.
        steps: that were traced.
        most: kernels; None shows all that are listed.
    """
    total = found["busy_ms"] or 1.0
    kinds = ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in found["by_kind"].items())
    rows = found["kernels"][:most]
    rest = total - sum(row["ms"] for row in rows) if found["kernels"] else 0.0
    lines = [
        f"{found['busy_ms']:.2f} ms of kernels a step, over {steps} steps: {kinds}",
        f"{'ms a step':>10} {'share':>6} {'runs':>6}  kernel",
        *(
            f"{row['ms']:>10.3f} {row['ms'] / total:>6.1%} {row['runs']:>6.1f}  {row['kernel']}"
            for row in rows
        ),
    ]
    return "\n".join([*lines, f"{rest:>10.3f} {rest / total:>6.1%} {'':>6}  all others"])
