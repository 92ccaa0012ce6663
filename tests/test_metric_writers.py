"""Lines that come back exactly, every step once, valid JSON whatever the value."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import metric_writers
from clipjax.metric_writers import JsonLines, MetricWriter, encode_line


def read(path):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_float32_comes_back_exactly():
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32([1e-45, 3.4028235e38, -0.0]))
    for value in values:
        line = json.loads(encode_line(1, {"loss": value}))
        assert np.float32(line["loss"]).tobytes() == value.tobytes()
    # Negative control: fewer digits do lose bits.
    assert any(np.float32(f"{value:.6g}") != value for value in values)


def test_kinds_of_numbers():
    line = encode_line(7, {"n": 3, "ok": True, "x": jnp.float32(0.5), "b": jnp.bfloat16(0.25)})
    assert json.loads(line) == {"step": 7, "n": 3, "ok": 1, "x": 0.5, "b": 0.25}
    assert isinstance(json.loads(encode_line(1, {"n": np.int64(3)}))["n"], int)


def test_values_that_json_cannot_hold_are_null_and_told():
    line = encode_line(1, {"loss": np.float32("nan"), "norm": np.inf, "low": -np.inf, "ok": 1.0})
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "low": None,
        "ok": 1.0,
        "nonfinite": {"loss": "nan", "norm": "inf", "low": "-inf"},
    }


@pytest.mark.parametrize(
    "metrics",
    [{"loss": [1.0, 2.0]}, {"loss": "0.1"}, {"loss": None}, {"step": 1}, {"nonfinite": 1}],
)
def test_what_is_no_metric(metrics):
    with pytest.raises(ValueError, match="metric"):
        encode_line(1, metrics)


def test_every_step_stands_once(tmp_path):
    with MetricWriter(tmp_path / "run") as writer:
        for step in (1, 2, 5):
            writer.write(step, {"loss": step / 10})
        with pytest.raises(ValueError, match="step 5 comes after step 5"):
            writer.write(5, {"loss": 0.0})
        writer.write_evals(2, {"top1": 0.1})
        writer.write_evals(5, {"top1": 0.2})
        writer.write_evals(5, {"top1": 0.3})
    assert [x["step"] for x in read(tmp_path / "run/metrics.jsonl")] == [1, 2, 5]
    assert read(tmp_path / "run/evals.jsonl") == [
        {"step": 2, "top1": 0.1},
        {"step": 5, "top1": 0.3},
    ]


def test_resume_cuts_later_lines_and_one_that_was_cut_off(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 9):
            writer.write(step, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 9, "lo')
    with MetricWriter(tmp_path, start_step=6) as writer:
        assert [x["step"] for x in read(path)] == [1, 2, 3, 4, 5, 6]
        writer.write(7, {"loss": 2.0})
    assert [x["loss"] for x in read(path)] == [1.0] * 6 + [2.0]
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == []
    with MetricWriter(tmp_path):  # from scratch
        assert read(path) == []


def test_a_last_line_that_was_cut_off_is_dropped_even_if_it_is_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}')
    JsonLines(path, start_step=2).close()
    assert read(path) == [{"step": 1, "loss": 0.5}]


def test_a_file_of_another_kind_is_not_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("hello\nworld\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is no JSON object with a step"):
        MetricWriter(tmp_path)
    assert path.read_text() == "hello\nworld\n"


def test_tensorboard_files_hold_the_scalars(tmp_path):
    with MetricWriter(tmp_path, start_step=3) as writer:
        writer.write(4, {"loss": 0.5})
        writer.write_evals(4, {"zero_shot/top1": 0.25})
    data = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in data and b"eval/zero_shot/top1" in data
    with MetricWriter(tmp_path / "without", tensorboard=False) as writer:
        writer.write(1, {"loss": 0.5})
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_only_the_lead_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": 1.0})
        writer.write_evals(1, {"top1": 1.0})
    assert not (tmp_path / "run").exists()


def test_damaged_lines(tmp_path, caplog):
    """What the machine had not on its disk yet is dropped and said; damage before is an error."""
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 10}\n{"step": 20}\n'
    path.write_bytes(good + b"\0\xff\0\n\0\0")
    with MetricWriter(tmp_path, start_step=20, log_every=10):
        assert path.read_bytes() == good
    assert "dropped 1 lines after step 20" in caplog.text and "no line" not in caplog.text
    for damaged in (b'\xff\n{"step": 20}\n', b"\xff\xfe\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is no .* move the file away"):
            MetricWriter(tmp_path, start_step=20)
        assert path.read_bytes() == damaged
        with MetricWriter(tmp_path, start_step=20, is_finished=True) as writer:
            writer.write_evals(20, {"top1": 0.5})
        assert path.read_bytes() == damaged and "The run is finished" in caplog.text
    assert read(tmp_path / "evals.jsonl") == [{"step": 20, "top1": 0.5}]


@pytest.mark.parametrize(
    ("steps", "start", "said"),
    [
        ((10, 20), 45, "has no line from step 21 to step 45, about 2 lines"),
        ((), 45, "has no line from step 1 to step 45, about 4 lines"),
        ((10, 20, 30, 40), 45, None),
        ((), 0, None),
    ],
)
def test_a_gap_is_noticed(tmp_path, caplog, steps, start, said):
    with MetricWriter(tmp_path) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0})
    MetricWriter(tmp_path, start_step=start, log_every=10).close()
    assert ("no line" in caplog.text) is (said is not None)
    assert said is None or said in caplog.text


def test_all_that_was_written_is_synced(tmp_path, monkeypatch):
    """Before the checkpoint is: each file, with all its bytes in the kernel by then."""
    sizes = {}
    real = metric_writers.os.fsync

    def fsync(descriptor):
        name = metric_writers.os.readlink(f"/proc/self/fd/{descriptor}")
        sizes[name.rpartition("/")[2].partition(".")[0]] = metric_writers.os.fstat(
            descriptor
        ).st_size
        real(descriptor)

    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write_evals(1, {"top1": 1.0})
        before = sum(p.stat().st_size for p in (tmp_path / "tensorboard").iterdir())
        monkeypatch.setattr(metric_writers.os, "fsync", fsync)
        writer.sync()
    assert sizes["metrics"] == len('{"step": 1, "loss": 1.0}\n')
    assert sizes["evals"] == len('{"step": 1, "top1": 1.0}\n')
    assert sizes["events"] > max(before, 100)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_workdir_that_is_deleted_is_an_error(tmp_path, replaced):
    workdir = tmp_path / "run"
    with MetricWriter(workdir, tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
        shutil.rmtree(workdir)
        if replaced:
            workdir.mkdir()
            (workdir / "metrics.jsonl").touch()
        with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl was deleted or replaced"):
            writer.write(2, {"loss": 1.0})
        with pytest.raises(FileNotFoundError, match="was deleted or replaced"):
            writer.sync()
