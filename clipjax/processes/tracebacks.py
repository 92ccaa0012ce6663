"""Tracebacks as messages are shown, and only their end where a log has the whole."""

import sys
import threading
from types import TracebackType

from clipjax.printable import traceback_text
from clipjax.processes import process_log


def guard_tracebacks() -> None:
    """Has the tracebacks of errors that nobody catches shown as messages are."""
    sys.excepthook = _show_traceback
    threading.excepthook = lambda given: _show_traceback(
        given.exc_type, given.exc_value, given.exc_traceback
    )


def show_traceback(error: BaseException) -> None:
    """Shows the traceback of an error as a message is shown; its end where a log has the whole."""
    _show_traceback(type(error), error, error.__traceback__)


def _show_traceback(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None = None
) -> None:
    if sys.stderr is None or issubclass(kind, SystemExit):
        return
    shown = traceback_text(error) if error is not None else f"{kind.__name__}\n"
    sys.stderr.write(process_log.shortened(shown))
    sys.stderr.flush()
