"""A worker process: makes parts of batches until its parent is gone."""

import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import socket
import traceback
from typing import Any

from clipjax.data.loading import workers_messages as messages
from clipjax.printable import LogFormatter
from clipjax.processes.tracebacks import guard_tracebacks

_PR_SET_PDEATHSIG = 1


def main(connection_file: int, maker_file: int, parent: int) -> None:
    """Runs a worker."""
    _die_with(parent)
    faulthandler.enable()
    guard_tracebacks()
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(True)
    # The parent decides when a run stops, whomever else a signal reaches.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=connection_file)
    connection.set_inheritable(False)
    try:
        maker = messages.unpickle(maker_file)
        os.close(maker_file)
    except Exception as error:
        messages.send(connection, messages.FAILED, portable(error))
        return
    messages.send(connection, messages.READY)
    while True:
        try:
            order, file = messages.receive_order(connection)
        except EOFError:
            return
        answer = _carry_out(maker, order, file)
        try:
            messages.send(connection, *answer)
        except ConnectionError:
            return


def _carry_out(maker: Any, order: messages.Order, file: int) -> tuple[bytes, object]:
    try:
        images, at_work = messages.batch_memory(file, order)
        rows, place = images[order.low : order.high], at_work[order.part : order.part + 1]
        return messages.DONE, maker.make(order.stage, order.start, rows, place)
    except Exception as error:
        return messages.FAILED, portable(error)
    finally:
        os.close(file)


def portable(error: Exception) -> Exception:
    """An exception that another process can raise: with its stack as a note, and of its own type
    where that can be pickled."""
    stack = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign exception's own pickling raises
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker process:\n{stack}")
    return error


def _die_with(parent: int) -> None:
    """Has the kernel end this process with its parent, even if it hangs or is stopped."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before
        os._exit(1)
