"""Pieces that every benchmark shares."""

import json
import math
import re
import threading

import pytest

from benchmarks import common, workers


def test_rows_of_several_writers_are_whole_lines(tmp_path):
    """Two cases and the program append to one file; a row is there whole or not at all."""
    path = tmp_path / "rows.jsonl"

    def write(number):
        for i in range(50):
            common.append_line(path, {"writer": number, "row": i, "text": "x" * 3000})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = common.read_lines(path)
    assert {(row["writer"], row["row"]) for row in rows} == {
        (n, i) for n in range(4) for i in range(50)
    }
    with path.open("a") as file:
        file.write('{"writer": 9, "cut of')  # the machine was taken back while this was written
    assert common.read_lines(path) == rows


def test_numbers_are_written_so_that_json_holds_them(tmp_path):
    common.append_line(tmp_path / "x", {"a": math.nan, "b": [1.23456789e9, 3], "c": {"d": True}})
    assert common.read_lines(tmp_path / "x") == [
        {"a": "nan", "b": [1234600000.0, 3], "c": {"d": True}}
    ]
    common.write_json(tmp_path / "y.json", {"a": -math.inf})
    assert json.loads((tmp_path / "y.json").read_text()) == {"a": "-inf"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_ratio_is_that_of_pairs_with_half_their_range_as_noise():
    """A load that slows both sides of some turns counts for neither."""
    ratio = common.paired_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0])
    assert ratio == (2.0, 0.5)
    with pytest.raises(ValueError, match="longer"):
        common.paired_ratio([1.0], [1.0, 2.0])


def test_steps_are_waited_for_once_a_chunk():
    """The host dispatches ahead, as a training loop does."""
    seen = []
    figures = common.time_steps(
        lambda: seen.append("step"), lambda _: seen.append("wait"), chunks=3, steps_a_chunk=4
    )
    assert len(figures) == 3 and all(figure > 0 for figure in figures)
    assert "".join(word[0] for word in seen) == "sw" * 4 + "ssssw" * 3


def test_a_slow_step_is_timed_once_at_least(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(common.time, "perf_counter", lambda: float(next(clock)))
    assert len(common.time_steps(lambda: None, lambda _: None, most_s=5.0)) == 1


def test_the_machine_is_described():
    host = common.machine()
    assert host["cores"] >= 1 and host["memory_gib"] > 0 and host["load_average"] >= 0
    found = common.versions("jax", "no-such-package")
    assert re.match(r"\d+\.\d+", found["jax"]) and found["no-such-package"] == "absent"
    assert common.status_bytes("VmHWM") >= common.status_bytes("VmRSS") > 2**20
    lines = common.setting_lines("jax")
    assert f"{host['cores']} cores" in lines[0] and "commit" in lines[0] and "jax" in lines[1]


def worker(body):
    """A worker whose answer to a word is made by `body`, an expression of `word`."""
    code = f"from benchmarks.workers import serve\nserve(lambda: lambda word: {body})"
    return workers.Worker(["-c", code])


def test_a_worker_answers_each_word():
    with worker("{'echo': word}") as process:
        assert [process.ask(word) for word in ("a", "b")] == [{"echo": "a"}, {"echo": "b"}]


def test_a_worker_that_fails_or_hangs_says_so():
    with worker("1 / 0") as process, pytest.raises(workers.WorkerError, match="ZeroDivisionError"):
        process.ask("a")
    with (
        worker("__import__('time').sleep(60)") as process,
        pytest.raises(workers.WorkerError, match="no answer to 'a' within 0 s"),
    ):
        process.ask("a", limit_s=0.3)


def test_what_a_worker_lacks_is_no_failure():
    code = (
        "from benchmarks.common import MissingError\nfrom benchmarks.workers import serve\n"
        "def make():\n    raise MissingError('open_clip is not installed')\nserve(make)"
    )
    with (
        workers.Worker(["-c", code]) as process,
        pytest.raises(common.MissingError, match="open_clip is not installed"),
    ):
        process.ask("ready")
