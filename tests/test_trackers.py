"""Trackers: what they are given, that a failing one ends no run, and Weights & Biases offline."""

import json
import logging
import math
import struct
import sys

import pytest

from clipjax.config import default_config
from clipjax.experiment import resolve
from clipjax.metric_writers import MetricWriter
from clipjax.trackers import Trackers, check_trackers


class Noting:
    """Notes what it is given; `fails` names where it raises."""

    noted: list = []  # noqa: RUF012  the tests empty it

    def __init__(self, *, fails: str = "", workdir, config):
        self.fails = fails
        self.note("open", workdir.name, dict(config))

    def note(self, what, *more):
        Noting.noted.append((what, *more))
        if what == self.fails:
            raise OSError("no network")

    def write(self, group, step, metrics):
        self.note("write", group, step, metrics)

    def close(self):
        self.note("close")


@pytest.fixture(autouse=True)
def forget():
    Noting.noted.clear()


@pytest.fixture
def mine(monkeypatch):
    """Makes this module importable, as a user's is."""
    monkeypatch.setitem(sys.modules, "noting_tracker", sys.modules[__name__])
    return "noting_tracker:Noting"


def written(workdir, **fields):
    trackers = Trackers([fields], workdir, {"seed": 1})
    with MetricWriter(workdir, tensorboard=False, trackers=trackers) as writer:
        writer.write(1, {"loss": 0.5, "norm": math.inf})
        writer.write_evals(1, {"zero_shot/x/top1": 0.25})
        writer.write(2, {"loss": 0.25})
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_of_ones_own_is_given_all(mine, tmp_path):
    assert len(written(tmp_path, name=mine)) == 2
    assert Noting.noted == [
        ("open", tmp_path.name, {"seed": 1}),
        ("write", "train", 1, {"loss": 0.5, "norm": math.inf}),
        ("write", "eval", 1, {"zero_shot/x/top1": 0.25}),
        ("write", "train", 2, {"loss": 0.25}),
        ("close",),
    ]


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_tracker_that_fails_is_said_and_left_out(mine, tmp_path, caplog, where):
    logging.getLogger("absl").setLevel(logging.INFO)
    assert len(written(tmp_path, name=mine, fails=where)) == 2
    assert [what for what, *_ in Noting.noted].count(where) == 1
    assert "config.trackers[0] is left out" in caplog.text and "no network" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "wand"}, "wandb"),
        ({"name": "wandb", "projekt": "x"}, "Did you mean"),
        ({"name": "wandb", "mode": "of"}, "online, offline, disabled"),
    ],
)
def test_a_tracker_that_is_none(spec, message):
    with pytest.raises(ValueError, match=r"config\.trackers\[0\]") as error:
        check_trackers([spec], to_run=False)
    assert message in str(error.value)


def test_a_package_that_is_missing_is_said_before_the_run(monkeypatch):
    config = default_config()
    config.data.source, config.trackers = "synthetic:2000", ({"name": "wandb"},)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        resolve(config)


def logged(data):
    """Records of a file of Weights & Biases: LevelDB's log behind seven bytes of its own."""
    block, at, record = 32_768, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too short for a header: the next block begins
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.interop
def test_weights_and_biases_offline(tmp_path):
    """Two starts of one run; what its files hold is read back."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    fields = {"name": "wandb", "mode": "offline", "project": "p", "tags": ["t"]}
    written(tmp_path, **fields)
    trackers = Trackers([fields], tmp_path, {"seed": 1})
    trackers.write("train", 3, {"loss": 0.125})
    trackers.close()

    def records(path):
        for data in logged(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record

    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    found = [record for file in files for record in records(file)]
    rows = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in found
        if r.HasField("history")
    ]
    assert [(row["step"], row.get("train/loss")) for row in rows] == [
        (1, 0.5),
        (1, None),
        (2, 0.25),
        (3, 0.125),
    ]
    assert rows[1]["eval/zero_shot/x/top1"] == 0.25
    runs = [record.run for record in found if record.HasField("run")]
    own = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert {run.run_id for run in runs} == {own} and {run.project for run in runs} == {"p"}
