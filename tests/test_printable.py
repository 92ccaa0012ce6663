"""What is shown: nothing that moves a cursor, hides, or turns text round; and no writing harmed."""

import ast
import logging
from pathlib import Path

import pytest

from clipjax import printable as module
from clipjax.printable import (
    LogFormatter,
    html_text,
    line_text,
    message_text,
    printable,
)

ROOT = Path(__file__).parent.parent / "clipjax"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\x00b\x7f", r"a\x00b\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),  # C1: CSI in one character, next line
        ("a\r\n\tb", r"a\r\n\tb"),
        ("cat\u202egod\u202c \u2066x\u2069 \u200e\u200f\u061c", None),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("pay\u200bpal \ufeffx \u00adx \u2060x", None),
        ("\udc80.png", r"\udc80.png"),  # of a file name that is not UTF-8
        ("x\U000e0041\U000e0042", r"x\U000e0041\U000e0042"),  # tags hide text
        (ENGLAND[:-1], None),  # a flag that does not end
    ],
)
def test_what_deceives_is_an_escape(text, shown):
    found = printable(text)
    assert found == (text.encode("unicode_escape").decode() if shown is None else shown) or (
        shown is None and "\\u" in found.lower()
    )
    assert all(character.isprintable() or character == "\U0001f3f4" for character in found)
    found.encode("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat, 100 %",
        "é ñ Ω ж",
        "漢字 ひらがな 한국어",
        "שלום مرحبا",
        "می‌خواهم",  # a joiner that Persian needs
        "क्‍ष",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 ❤\ufe0f 1\ufe0f⃣ \U0001f44d\U0001f3fd",
        f"{ENGLAND} and \U0001f1eb\U0001f1f7",
        "no\u00a0break",
        r"C:\data\new",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text == line_text(text) == html_text(text)


def test_a_record_of_a_log_is_one_record():
    record = logging.LogRecord(
        "x", logging.ERROR, "x.py", 1, "%s: %s", ("a\x1b[2J", "b\n00:00:00 all is well"), None
    )
    text = LogFormatter().format(record)
    assert text[8:] == " ERROR a\\x1b[2J: b\n  00:00:00 all is well"
    assert message_text("a:\n  b\r\u202e") == "a:\n    b\\r\\u202e"


def calls(path):
    """What is called, and what is named, in a file: `print`, `html.escape`, `sys.stdout`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


DOORS = {
    # What the launch scripts read of it is a number.
    "print": {"processes/launching.py"},
    "sys.stdout": {"cli/output.py"},
    "tqdm.write": {"cli/output.py", "cli/logs.py"},
    "html.escape": {"printable.py"},
    # The progress of training shows numbers; what ends a process from a thread writes by itself.
    "sys.stderr": {"cli/output.py", "cli/logs.py", "cli/main.py", "progress.py"}
    | {f"processes/{name}.py" for name in ("launching", "process_log", "tracebacks")},
    "sys.__stderr__": set(),
    "os.write": {"processes/process_log.py"},
    "sys.__stdout__": set(),
}


def test_there_is_one_door_to_the_terminal_and_one_to_pages():
    found = {name: set() for name in DOORS}
    for path in ROOT.rglob("*.py"):
        for name in DOORS.keys() & set(calls(path)):
            found[name].add(path.relative_to(ROOT).as_posix())
    assert found == DOORS


def test_without_the_escapes_the_terminal_would_be_reached(monkeypatch):
    """The negative control of the tests that look for raw characters."""
    assert "\x1b" not in message_text("\x1b[2J")
    monkeypatch.setattr(module, "UNSEEN", set())
    assert "\x1b" in message_text("\x1b[2J")
