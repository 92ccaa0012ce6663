"""The progress of a run, for a person."""

import io

import jax
import pytest

from clipjax import progress
from clipjax.progress import ProgressBar


def of_64(step):
    return 64 * step


def test_only_the_lead_shows_it(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with ProgressBar(1, num_examples=int, stream=stream) as bar:
        bar.update(1)
    assert stream.getvalue() == ""


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_are_few_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    with ProgressBar(1000, num_examples=of_64, start_step=200, stream=stream, interval_s=30) as bar:
        for step in range(201, 1001):
            clock.now += 0.1
            bar.update(step, {"loss": 1 / 3})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 500/1000  640 samples/s  0:00:50 left  loss 0.3333"
    assert lines[-1] == "step 1000/1000  640 samples/s  0:00:00 left  loss 0.3333"
    assert len(lines) == 3


def test_a_line_without_a_terminal_keeps_the_last_loss_and_a_rate_without_compilation(clock):
    stream = io.StringIO()
    with ProgressBar(1000, num_examples=of_64, stream=stream, interval_s=29.95) as bar:
        clock.now += 100  # the step compiles
        bar.stand_still(100)
        for step in range(1, 1001):
            clock.now += 0.1
            bar.update(step)
            if step % 100 == 50:
                bar.update(step, {"loss": 1 / step})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/1000  640 samples/s  0:01:40 left"  # 100 s passed, none is known yet
    assert lines[1] == "step 301/1000  640 samples/s  0:01:10 left  loss 0.004 at step 250"
    assert lines[-1] == "step 1000/1000  640 samples/s  0:00:00 left  loss 0.001053 at step 950"


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with ProgressBar(10, num_examples=of_64, start_step=4, stream=stream) as bar:
        for step in range(5, 11):
            bar.update(step, {"loss": 0.5})
    shown = stream.getvalue().split("\r")[-1]
    assert "10/10" in shown and "samples/s, loss 0.5" in shown and "\n" in shown
