"""What a verb prints. All of it goes through here: names, labels and paths come from elsewhere."""

import sys
from typing import TextIO

from tqdm import tqdm

from clipjax.printable import line_text, message_text


def show(text: object = "") -> None:
    """Prints a line to standard output, above a progress bar if there is one."""
    _write(line_text(text), sys.stdout)


def show_page(text: str, stream: TextIO | None = None) -> None:
    """Prints a text whose line breaks are our own, to standard output if no stream is given."""
    _write("\n".join(map(line_text, text.split("\n"))), stream or sys.stdout)


def complain(text: object) -> None:
    """Prints a message to standard error."""
    _write(message_text(text), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    tqdm.write(text, file=stream)
    stream.flush()
