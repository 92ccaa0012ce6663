"""Tracebacks are shown as messages are."""

import sys

from clipjax.processes.tracebacks import guard_tracebacks


def test_a_traceback_is_escaped(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("threading.excepthook", None)
    guard_tracebacks()
    try:
        raise RuntimeError("\x1b[2J s3://user:CANARY@bucket")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert "Traceback (most recent call last):\n" in told and "in test_a_traceback" in told
    assert told.endswith("RuntimeError: \\x1b[2J s3://[redacted]@bucket\n")
    assert "CANARY" not in told.splitlines()[-1]
