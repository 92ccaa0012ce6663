"""Signals become a flag between two steps; the codes that tell a launcher what to do differ."""

import os
import signal

import pytest

from clipjax import exit_codes, faults
from clipjax.signals import PreemptionGuard


def test_exit_codes_differ():
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert sorted(codes) == [0, 1, 80, 81, 82, 83]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_flag_between_two_steps(number):
    before = signal.getsignal(number)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        signal.raise_signal(number)
        assert guard.should_stop(2)
        assert guard.should_stop(3)
    assert signal.getsignal(number) == before


def test_a_term_fault_is_such_a_signal(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "term@loop:step=2")
    with PreemptionGuard() as guard:
        for step in range(5):
            faults.point("loop", step)
            assert guard.should_stop(step) == (step >= 2)


def test_a_second_sigterm_ends_at_once(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with PreemptionGuard():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert exits == []  # a scheduler may send its warning more than once
        signal.raise_signal(signal.SIGTERM)
        assert exits == [143]
