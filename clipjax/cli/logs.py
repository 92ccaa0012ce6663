"""What a person reads while a command runs: our own messages, and other libraries' warnings."""

import logging as python_logging
import sys
import time
from pathlib import Path

from absl import logging
from tqdm import tqdm

from clipjax.cli.flag_names import in_flags
from clipjax.printable import LogFormatter
from clipjax.processes import process_log

_HERE = Path(__file__).parent.parent


class _Handler(python_logging.Handler):
    """Writes to the log of the process, and to the terminal above a progress bar, not through it.

    Standard error is looked up each time: it is another stream once descriptor 2 is the log's.

    Args:
        verb: whose flags are named where a record names arguments.
    """

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb = verb

    def emit(self, record: python_logging.LogRecord) -> None:
        try:
            text = in_flags(self.format(record), self._verb)
            process_log.write(f"{time.strftime('%Y-%m-%d')} {text}\n")
            if sys.stderr.isatty():
                tqdm.write(text, file=sys.stderr)
            else:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
        except Exception:  # as every handler of logging does: a message may not end the run
            self.handleError(record)


def _is_wanted(record: python_logging.LogRecord) -> bool:
    ours = Path(record.pathname).is_relative_to(_HERE)
    return ours or record.levelno >= python_logging.WARNING


def configure(verb: str) -> None:
    """Sends a verb's log records to standard error, with the time and, above INFO, the level."""
    handler = _Handler(verb)
    handler.addFilter(_is_wanted)
    handler.setFormatter(LogFormatter())
    root = python_logging.getLogger()
    logging.set_verbosity(logging.INFO)
    for old in list(root.handlers):
        root.removeHandler(old)
    for old in list(logging.get_absl_logger().handlers):
        logging.get_absl_logger().removeHandler(old)
    root.addHandler(handler)
    python_logging.captureWarnings(True)
    root.setLevel(python_logging.INFO)
