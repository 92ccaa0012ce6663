"""Steps that were skipped as something in them was not finite: read late, counted, written down."""

import collections
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

SKIPPED_FILE = "skipped.jsonl"
WINDOW = 100  # steps, of the fraction
_LATE = 1  # steps: the devices have the next one to do while the host waits for a verdict


class SkippedSteps:
    """Reads of each step whether it was skipped, one step late, and says when they are too many.

    Args:
        path: of the file that takes a line for each skipped step; None writes none.
        in_a_row: so many, one after the other, are too many.
        fraction: of the last `WINDOW` steps that may be skipped, once `in_a_row` of them are.
        total_steps: of the run, which may be shorter than the window.
        examples: indices in the data source of the batch of a step.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        in_a_row: int,
        fraction: float,
        total_steps: int,
        examples: Callable[[int], Sequence[int]],
    ) -> None:
        self._path, self._in_a_row, self._examples = path, in_a_row, examples
        self._fraction, self._window = fraction, min(WINDOW, total_steps)
        self._waiting: collections.deque[tuple[int, jax.Array]] = collections.deque()
        self._recent: collections.deque[bool] = collections.deque(maxlen=self._window)

    def give(self, step: int, in_a_row: jax.Array) -> str:
        """Takes the verdict on a step, `[]`, how many are skipped in a row, as the devices have it.

        Returns:
            What is wrong with the steps before it; empty if nothing is.
        """
        in_a_row.copy_to_host_async()
        self._waiting.append((step, in_a_row))
        return self.read(keep=_LATE)

    def read(self, keep: int = 0) -> str:
        """Reads the verdicts but the newest `keep`; says what is wrong."""
        while len(self._waiting) > keep:
            step, value = self._waiting.popleft()
            in_a_row = int(value)
            self._recent.append(in_a_row > 0)
            if in_a_row and self._path is not None:
                line = {"step": step, "in_a_row": in_a_row}
                indices = list(self._examples(step))
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "examples": indices}) + "\n")
            skipped = sum(self._recent)
            if in_a_row >= self._in_a_row:
                return f"{in_a_row} steps in a row, up to step {step},"
            if skipped >= self._in_a_row and skipped > self._fraction * self._window:
                return f"{skipped} of the last {len(self._recent)} steps, up to step {step},"
        return ""
