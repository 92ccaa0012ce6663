"""Idle time of the devices, with stand-ins for results that come when told to."""

import threading
import time

import jax
import pytest
from counting import HANGS_S, wait_until

from clipjax.device_clock import DeviceClock


class Result:
    """A result that is there once `finish` was called."""

    def __init__(self, error=None):
        self.event, self.error = threading.Event(), error

    def finish(self):
        self.event.set()

    def block_until_ready(self):
        assert self.event.wait(HANGS_S)
        if self.error:
            raise self.error


@pytest.fixture
def clock():
    clock = DeviceClock()
    yield clock
    clock.close()
    for thread in threading.enumerate():
        if thread.name == "clipjax-device-clock":
            thread.join(HANGS_S)
            assert not thread.is_alive()


def wait_until_idle(clock):
    wait_until(lambda: clock.idle_s(now := time.monotonic(), now + 1) > 0)


def test_a_busy_device_waits_for_nothing(clock):
    result = Result()
    clock.give(result)
    begin = time.monotonic()
    assert clock.idle_s(begin, begin + 5) == 0
    result.finish()


def test_an_idle_device_waits_all_the_time(clock):
    begin = time.monotonic()
    assert clock.idle_s(begin, begin + 5) == 5  # before the first step
    result = Result()
    clock.give(result)
    result.finish()
    wait_until_idle(clock)
    begin = time.monotonic()
    assert clock.idle_s(begin, begin + 5) == 5


def test_a_device_that_finishes_while_the_loop_waits_counts_from_then(clock):
    result = Result()
    begin = time.monotonic()
    clock.give(result)
    time.sleep(0.05)
    finished = time.monotonic()
    result.finish()
    wait_until_idle(clock)
    end = time.monotonic()
    assert 0 <= clock.idle_s(begin, end) <= end - finished < end - begin


def test_all_that_was_given_has_to_be_finished(clock):
    first, second = Result(), Result()
    clock.give(first)
    clock.give(second)
    first.finish()
    time.sleep(0.02)
    begin = time.monotonic()
    assert clock.idle_s(begin, begin + 5) == 0
    second.finish()
    wait_until_idle(clock)


def test_an_error_of_the_device_is_left_to_the_caller(clock):
    result = Result(jax.errors.JaxRuntimeError("a fault"))
    clock.give(result)
    result.finish()
    begin = time.monotonic()
    assert clock.idle_s(begin, begin + 5) == 0
