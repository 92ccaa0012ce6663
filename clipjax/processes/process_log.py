"""What a process writes to descriptor 2 goes to a file of its own; a person reads the messages.

C++ libraries, faulthandler, the watchdog and worker processes write to descriptor 2: stacks and
dumps of hundreds of lines, in which the one that counts is lost. `start` sends all of it to a file,
and lets `sys.stderr` go on to the terminal. Until the workdir is there (`keep`) the file is a
temporary one. Before `start`, and where no log is kept, nothing here changes anything.

The files are readable by their owner alone: what libraries write is not redacted.
"""

import atexit
import contextlib
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

FOLDER = "logs"
STDERR = 2
SHOWN_LINES = 15  # of a traceback or a message on the terminal; with what is said of it, below 20

_terminal = STDERR
_workdir: Path | None = None
_path: Path | None = None  # of what descriptor 2 writes to
_is_kept = False  # in the workdir, or because a message has named it


def start(workdir: Path | None) -> None:
    """Sends descriptor 2 to a temporary file, which `keep` moves into the workdir, if there is one.

    Where `sys.stderr` is something else than descriptor 2, as in a notebook, it does nothing.
    """
    global _terminal, _workdir, _path
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream without descriptor
        if _path is not None or sys.stderr.fileno() != STDERR:
            return
        sys.stderr.flush()
        descriptor, name = tempfile.mkstemp(prefix="clipjax-", suffix=".log")
        _workdir, _path = workdir, Path(name)
        _terminal = os.dup(STDERR)
        os.dup2(descriptor, STDERR)
        os.close(descriptor)
        sys.stderr = open(  # noqa: SIM115  for as long as the process lives
            _terminal,
            "w",
            buffering=1,
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            closefd=False,
        )
        atexit.register(forget)
        about = (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} of {socket.gethostname()}"
        )
        write(f"--- {about}\n")


def keep(process: int) -> Path | None:
    """Lets the log go on in `<workdir>/logs/process_N.log`, behind what earlier runs wrote there.

    Args:
        process: N, the number of this process in the run.

    Returns:
        The file; the temporary one where the workdir cannot be written to, None without `start`.
    """
    global _path, _is_kept
    if _path is None or _workdir is None or _is_kept:
        return _path
    path = _workdir / FOLDER / f"process_{process}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(path, flags, 0o600)
        written = _path.read_bytes()
        os.write(descriptor, written)
    except OSError:
        return _path
    os.dup2(descriptor, STDERR)
    os.close(descriptor)
    with contextlib.suppress(OSError):
        _path.unlink()
    _path, _is_kept = path, True
    return path


def path() -> Path | None:
    """The file that descriptor 2 writes to; None before `start`."""
    return _path


def has_dumps() -> bool:
    """Whether more than our own first line stands in a log that no workdir keeps yet."""
    return _path is not None and not _is_kept and _path.read_bytes().count(b"\n") > 1


def write(text: str) -> None:
    """Adds a text to the log; without one, nothing. Safe in any thread."""
    if _path is not None:
        with contextlib.suppress(OSError):  # no space: the terminal has the message
            os.write(STDERR, text.encode(errors="backslashreplace"))


def say(text: str) -> None:
    """Adds a line to the log and to the terminal; for threads that wait for no lock of a stream."""
    line = f"{text}\n".encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        os.write(_terminal, b"\n" + line if os.isatty(_terminal) else line)
    write(f"{text}\n")


def shortened(text: str) -> str:
    """Adds a text to the log; returns its last lines, as many as a terminal is given."""
    write(text)
    lines = text.splitlines(keepends=True)
    if _path is None or len(lines) <= SHOWN_LINES:
        return text
    return "".join(["...\n", *lines[-SHOWN_LINES:]])


def where() -> str:
    """The end of a last message: where the rest stands; it stays there."""
    global _is_kept
    if _path is None:
        return ""
    _is_kept = True
    return f"; all of it is in {_path}"


def tail(size: int = 64 << 10) -> str:
    """The end of the log; empty without one."""
    if _path is None:
        return ""
    with contextlib.suppress(OSError), _path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read().decode(errors="replace")
    return ""


def forget() -> None:
    """Deletes the temporary file of a process that ends before there is a workdir."""
    if _path is not None and not _is_kept:
        with contextlib.suppress(OSError):
            _path.unlink()
