"""What a person reads while a command runs: our own messages, and other libraries' warnings."""

import logging as python_logging
import sys
from pathlib import Path

from absl import logging
from tqdm import tqdm

from clipjax.printable import LogFormatter

_HERE = Path(__file__).parent.parent


class _Handler(python_logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: python_logging.LogRecord) -> None:
        if sys.stderr.isatty():
            tqdm.write(self.format(record), file=sys.stderr)
        else:
            super().emit(record)


def _is_wanted(record: python_logging.LogRecord) -> bool:
    ours = Path(record.pathname).is_relative_to(_HERE)
    return ours or record.levelno >= python_logging.WARNING


def configure() -> None:
    """Sends log records to standard error, with the time and, above INFO, the level."""
    handler = _Handler(sys.stderr)
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
