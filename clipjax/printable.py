"""Text of data, files and errors as a terminal or a page may show it.

Names, labels and captions come from the web. Control characters would move the cursor, recolour or
answer for the terminal; bidirectional controls show a text in another order than it has; invisible
characters make two names look alike. All of them are shown as escapes such as `\\x1b`. What
languages and emoji need stays: letters of any direction, joiners, variation selectors, flags.
"""

import html
import logging
import re
import traceback
import unicodedata

from clipjax.redaction import redact

# Format characters (Cf) that are seen, or that writing needs: joiners of Indic, Persian and emoji,
# signs that enclose the number behind them.
_SHOWN = {
    *"\u200c\u200d",
    *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)),
    *map(chr, range(0x13430, 0x13440)),
}
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# A flag of a region is a black flag and tag characters, which hide anything elsewhere.
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")


def printable(text: str) -> str:
    """Escapes what is not seen, or shows the rest as it is not; line breaks and tabs as well."""
    if text.isascii() and text.isprintable():
        return text
    parts, end = [], 0
    for flag in _FLAG.finditer(text):
        parts += [_escape(text[end : flag.start()]), flag[0]]
        end = flag.end()
    return "".join([*parts, _escape(text[end:])])


def _escape(text: str) -> str:
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in UNSEEN and character not in _SHOWN
        else character
        for character in text
    )


def line_text(text: object) -> str:
    """One line of a terminal: without credentials, and escaped."""
    return printable(redact(str(text)))


def message_text(text: object) -> str:
    """A message of one or more lines; further ones are set in, so that none looks like another."""
    return "\n  ".join(printable(line) for line in redact(str(text)).split("\n"))


def describe(error: BaseException) -> str:
    """An error in a line of at most 600 characters, with its type where that says something."""
    text = " ".join(str(error).split("\n\n")[0].split())
    name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return f"{name}{text:.600}"


def html_text(text: object) -> str:
    """Text of a page, or an attribute in quotes: without credentials, escaped, quoted."""
    return html.escape(line_text(text))


def html_words(text: str) -> str:
    """Like `html_text`, for captions and labels: words of the data hold no credentials."""
    return html.escape(printable(text))


class LogFormatter(logging.Formatter):
    """Log records as they are shown: the time, above INFO the level, and the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Gives the text of a record."""
        time = self.formatTime(record, "%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname} "
        return f"{time} {level}{message_text(record.getMessage())}"


def traceback_text(error: BaseException) -> str:
    """A traceback, without credentials and escaped."""
    told = "".join(traceback.format_exception(error))
    return "\n".join(printable(line) for line in redact(told).split("\n"))
