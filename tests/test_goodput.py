"""The wall time of a run by cause: all of it once, and over several starts."""

import json
import time
from types import SimpleNamespace

import pytest

from clipjax import goodput
from clipjax.goodput import CAUSES, STEPS, Goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock of the test's own; a process is 5 s old when its run begins."""
    now = SimpleNamespace(s=100.0)
    stand_in = SimpleNamespace(**vars(time) | {"monotonic": lambda: now.s})
    stand_in.clock_gettime = lambda _: 1000.0
    monkeypatch.setattr(goodput, "time", stand_in)
    monkeypatch.setattr(goodput, "Path", Stat)
    monkeypatch.setattr(goodput.os, "sysconf", lambda _: 100)
    return now


class Stat:
    """/proc/self/stat of a process that began at 995 s; its name holds a bracket."""

    def __init__(self, name):
        assert name == "/proc/self/stat"

    def read_text(self):
        return f"7 (py)thon) {' '.join(['0'] * 19)} 99500 0"


def a_start(workdir, clock, steps, start=0):
    """10 s of compiling before the first step, 2 s a step, an evaluation of 3 s, a save of 1 s."""
    found = Goodput(workdir)
    found.begin(start)
    for step in range(start + 1, steps + 1):
        if step == start + 1:
            with found.spending("compile"):
                clock.s += 10
        found.at(step)
        clock.s += 2
        found.move("data", 0.5)
    with found.spending("evaluation"):
        clock.s += 3
        with found.spending("checkpoint"):
            clock.s += 1
    return found


def test_all_of_the_time_is_counted_once(tmp_path, clock):
    seconds = a_start(tmp_path, clock, 4).seconds()
    assert seconds == {
        "start": 5.0,
        "restart": 0.0,
        "compile": 10.0,
        STEPS: 6.0,
        "data": 2.0,
        "evaluation": 3.0,
        "checkpoint": 1.0,
    }
    assert sum(seconds.values()) == 5 + clock.s - 100
    assert set(seconds) == {STEPS, *CAUSES}
    found = a_start(tmp_path, clock, 4).metrics()
    assert found["goodput"] == pytest.approx(6 / 27) and found["time_s/compile"] == 10.0


def test_steps_that_come_again_are_the_restart_s(tmp_path, clock):
    a_start(tmp_path, clock, 4).save()
    clock.s += 1000  # no process was there
    again = a_start(tmp_path, clock, 6, start=2)  # killed behind the save of step 2
    seconds = again.seconds()
    # 5 s up to the run, and steps 3 and 4 once more; 5 and 6 count.
    assert seconds["restart"] == 5 + 2 * 1.5 and seconds[STEPS] == 6 + 2 * 1.5
    assert seconds["start"] == 5 and seconds["compile"] == 20
    again.save()
    stored = goodput.read(tmp_path)
    assert stored["starts"] == 2 and stored["step"] == 6
    text = goodput.describe(stored)
    assert text.startswith("compile 37.0%, steps 16.7%") and text.endswith("0.01 h in 2 starts")


def test_the_file_is_written_now_and_then(tmp_path, clock):
    found = a_start(tmp_path, clock, 2)
    found.save(now=False)
    assert not (tmp_path / goodput.NAME).exists()
    clock.s += 60
    found.save(now=False)
    first = (tmp_path / goodput.NAME).read_text()
    clock.s += 1
    found.save(now=False)
    assert (tmp_path / goodput.NAME).read_text() == first
    found.save()
    assert (tmp_path / goodput.NAME).read_text() != first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": 1}', '{"seconds": {"steps": "x"}}'])
def test_a_file_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / goodput.NAME).write_text(text)
    assert goodput.read(tmp_path) == {}
    Goodput(tmp_path).save()
    assert json.loads((tmp_path / goodput.NAME).read_text())["starts"] == 1


def test_a_workdir_of_another_run_is_not_written(tmp_path):
    def refuse():
        raise RuntimeError("taken")

    with pytest.raises(RuntimeError, match="taken"):
        Goodput(tmp_path, refuse).save()
    assert not (tmp_path / goodput.NAME).exists()
