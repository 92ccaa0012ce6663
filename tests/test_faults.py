"""Faults strike where they are told to, once."""

import errno
from pathlib import Path

import pytest

from clipjax import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_fired(monkeypatch):
    monkeypatch.setattr(faults, "fired", set())


def test_without_a_fault_a_point_does_nothing(monkeypatch):
    monkeypatch.delenv(faults.FAULT, raising=False)
    faults.point("save.before_manifest", 3)


def test_a_fault_strikes_at_its_point_and_step_once(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@save.before_manifest:step=3")
    faults.point("save.before_manifest", 2)
    faults.point("save.before_manifest")
    faults.point("save.mid_write", 3)
    with pytest.raises(faults.InjectedFault, match=r"save\.before_manifest"):
        faults.point("save.before_manifest", 3)
    faults.point("save.before_manifest", 3)


def test_a_fault_without_a_step_strikes_at_the_first(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@here")
    with pytest.raises(faults.InjectedFault):
        faults.point("here", 17)


def test_an_error_of_the_system_strikes_as_often_as_it_says(monkeypatch):
    monkeypatch.setenv(faults.FAULT, "ESTALE@here:step=3:times=2")
    for _ in range(2):
        with pytest.raises(OSError, match="ESTALE") as found:
            faults.point("here", 3)
        assert found.value.errno == errno.ESTALE
    faults.point("here", 3)


@pytest.mark.parametrize(
    "text",
    ["kill", "kill@", "@here", "boom@here", "kill@here:step", "kill@here:step=x", "kill@a:b=1"],
)
def test_a_fault_of_another_form_is_an_error(monkeypatch, text):
    monkeypatch.setenv(faults.FAULT, text)
    with pytest.raises(ValueError, match=r"expected action@point\[:step=N\]\[:times=N\]"):
        faults.point("elsewhere")
