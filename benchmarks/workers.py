"""Processes that wait for a word and answer: what takes turns with its peers runs in them."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import ROOT, MissingError

MARK = "answer "


class WorkerError(Exception):
    """A worker ended, or did not answer in time."""


class Worker:
    """A Python process that answers words with JSON.

    Args:
        command: arguments of Python: `["-m", "benchmarks.run_cases", "step", ...]`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(line.removeprefix(MARK))
        self._answers.put(None)

    def ask(self, word: str, *, limit_s: float = 600.0) -> Any:
        """Sends a word and returns the answer.

        Raises:
            MissingError: the worker says that something is missing.
            WorkerError: it ended without an answer, or the time is over.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self._process.kill()  # it would not hear that its input ends
            raise WorkerError(f"no answer to {word!r} within {limit_s:.0f} s") from None
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._process.wait()
            raise WorkerError(
                f"ended with exit code {self._process.returncode}: {self._last_words()}"
            )
        found = json.loads(answer)
        if isinstance(found, dict) and "missing" in found:
            raise MissingError(found["missing"])
        return found

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:500] if lines else "without a word"

    def close(self) -> None:
        """Ends the process; one that does not listen is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(make: Callable[[], Callable[[str], Any]]) -> None:
    """What a worker's process runs: makes its function, then answers until the input ends.

    Args:
        make: gives the function from a word to an answer that JSON holds; what it raises as
            MissingError is the answer to the first word.
    """
    first = sys.stdin.readline()
    try:
        answer = make()
    except MissingError as error:
        print(MARK + json.dumps({"missing": str(error)}), flush=True)
        return
    word = first
    while word:
        print(MARK + json.dumps(answer(word.strip())), flush=True)
        word = sys.stdin.readline()
