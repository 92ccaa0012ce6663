"""`exit.json` in the workdir: how the run ended, for its launcher and for a person.

The lead writes it when the run has begun (`state` is "running") and again when it ends, with exit
code, reason and the steps that were finished. What ends a process without a word, as SIGKILL does,
leaves what was written at the start. Nothing is written into the workdir of another run that still
goes on, nor into one that is not there.
"""

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from clipjax.files import write_file
from clipjax.printable import line_text
from clipjax.processes.exit_codes import ending

NAME = "exit.json"
LAUNCH = "CLIPJAX_LAUNCH"  # set by a launcher: which one, a slash, which of its starts
RUNNING, ENDED = "running", "ended"
_MAX_REASON = 2000
_WAIT_S = 3.0  # that a storage may take: a process that hangs in its storage still has to end


class _Record:
    """The record of this process's run."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / NAME
        self.step: int | None = None
        self.is_begun = False
        self.lock = threading.Lock()  # held for good by who says the end

    def write(self, state: str, code: int | None, reason: str) -> None:
        """Writes the file, if the workdir is there and nobody else's."""
        if not self.path.parent.is_dir() or not (self.is_begun or self._is_free()):
            return
        content = {
            "state": state,
            "code": code,
            "meaning": None if code is None else ending(code).meaning,
            "reason": line_text(reason)[:_MAX_REASON],
            "step": self.step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "launch": os.environ.get(LAUNCH, ""),
        }
        try:
            write_file(self.path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            logging.getLogger("absl").warning("%s was not written: %s", self.path, error)

    def _is_free(self) -> bool:
        return (read(self.path.parent) or {}).get("state") != RUNNING


_current: _Record | None = None


def open_record(workdir: Path, *, is_lead: bool) -> None:
    """Says where the record of this process's run stands; what `begin`, `at` and `end` are about.

    Args:
        workdir: of the run.
        is_lead: whether this process writes it; elsewhere nothing is written.
    """
    global _current
    _current = _Record(workdir) if is_lead else None


def begin(step: int | None = None) -> None:
    """Records that the run goes on, from a step once that is known; it owns the workdir by now."""
    if _current is not None:
        _current.step, _current.is_begun = step, True
        _current.write(RUNNING, None, "")


def at(step: int) -> None:
    """Says how many steps are finished; costs nothing."""
    if _current is not None:
        _current.step = step


def end(code: int, reason: str = "") -> None:
    """Records how the run ended; the first to say so is right. Safe in any thread."""
    if _current is None or not _current.lock.acquire(blocking=False):
        return
    writer = threading.Thread(target=_current.write, args=(ENDED, code, reason), daemon=True)
    writer.start()
    writer.join(_WAIT_S)


def read(workdir: Path) -> dict[str, Any] | None:
    """The record that stands in a workdir; None where none can be read."""
    try:
        found = json.loads((workdir / NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
