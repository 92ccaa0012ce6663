"""What the host does while the devices compute: the next batch is sent, older metrics are read."""

import json
import types
from contextlib import ExitStack

import jax
import numpy as np
import pytest

from clipjax import step_log, train
from clipjax.config_fields import CheckpointSettings, Settings
from clipjax.evals.naming import name_evals
from clipjax.evals.running import ScheduledEval

STEPS = 6


class Manager:
    """Of checkpoints: notes when one is made."""

    def __init__(self, events):
        self.events = events

    def check_for_errors(self):
        pass

    def save(self, step, state, **_):
        self.events.append(("save", step))

    def measured(self, step, metrics):
        self.events.append(("measured", step, dict(metrics)))
        return False

    def wait_until_finished(self):
        pass


def events_of(monkeypatch, tmp_path, **changes):
    """(what, step), in order: `send` a batch, `step`, `read` its metrics, `save`."""
    events = []
    losses, none = jax.device_put([np.float32(i) for i in range(STEPS)]), jax.device_put(0.0)

    def step(state, batch):
        events.append(("step", int(batch["step"])))
        return state + 1, {"loss": losses[batch["step"]], "skipped_in_a_row": none}

    def send(batch, mesh):
        events.append(("send", int(batch["step"])))
        return batch

    def read(values):
        loss = values["loss"] if isinstance(values, dict) else values
        events.append(("read", int(loss)))
        return jax.tree.map(np.asarray, values)

    monkeypatch.setattr(train, "global_batch", send)
    reading = types.SimpleNamespace(**vars(jax) | {"device_get": read})
    monkeypatch.setattr(train, "jax", reading)
    monkeypatch.setattr(step_log, "jax", reading)
    every, evals = changes.pop("save_every", 100), changes.pop("evals", ())
    settings = Settings(
        total_steps=STEPS,
        tensorboard=False,
        report=False,
        checkpoint=CheckpointSettings(every_steps=every),
        **changes,
    )
    stage = types.SimpleNamespace(step=step, until_step=STEPS, sizes="")
    device = types.SimpleNamespace(device_kind="cpu", platform="cpu")
    mesh = types.SimpleNamespace(devices=np.array([device]))
    experiment = types.SimpleNamespace(
        settings=settings,
        workdir=tmp_path,
        evals=evals,
        load_init=None,
        metadata={},
        loader=types.SimpleNamespace(
            iterate=lambda start: ((i, {"step": np.int32(i)}) for i in range(start, STEPS)),
            counts=dict,
            bad_state=lambda: {"by_reason": {}, "window": {}},
        ),
        program=types.SimpleNamespace(
            mesh=mesh,
            stages=(stage,),
            stage_index=lambda step: 0,
            num_examples=lambda step: 8 * step,
        ),
    )
    with ExitStack() as stack:
        train.Loop(experiment, Manager(events), stack, 0).run(np.int32(0))
    return events


@pytest.mark.parametrize("log_every", [1, 2])
def test_a_batch_is_sent_and_its_step_dispatched_before_the_step_ahead_is_read(
    monkeypatch, tmp_path, log_every
):
    events = events_of(monkeypatch, tmp_path, log_every=log_every)
    assert [step for what, step in events if what == "send"] == list(range(STEPS))
    # The first loss is fetched by itself, and before the last save nothing is under way.
    for step in range(1, STEPS - 1):
        reads = [i for i, event in enumerate(events) if event == ("read", step)]
        assert len(reads) == ((step + 1) % log_every == 0)
        for read in reads:
            assert events.index(("step", step)) < events.index(("send", step + 1)) < read
            assert events.index(("step", step + 1)) < read


def test_a_save_reads_first_what_it_would_leave_unwritten(monkeypatch, tmp_path):
    events = events_of(monkeypatch, tmp_path, log_every=1, save_every=3)
    saved = events.index(("save", 3))
    assert events[saved - 1] == ("read", 2) and events[saved + 1] == ("send", 3)


def test_what_there_is_no_time_for_is_counted_and_the_last_step_has_all(monkeypatch, tmp_path):
    (name,) = name_evals([("zero_shot", "x")])
    found = types.SimpleNamespace(run=lambda params: {"top1": 0.5})
    evals = (ScheduledEval(key="x", name=name, every_steps=2, eval=found),)
    monkeypatch.setattr(train, "eval_variables", lambda state, which: None)
    monkeypatch.setattr(train.Loop, "write_results", lambda loop, step, results: None)

    def lines(workdir, **changes):
        workdir.mkdir()
        events = events_of(monkeypatch, workdir, evals=evals, log_every=10, **changes)
        rows = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
        return rows, [event[1:] for event in events if event[0] == "measured"]

    top1 = {"zero_shot/x/top1": 0.5}
    rows, measured = lines(tmp_path / "a", eval_time_fraction=0.0)
    assert rows == [{"step": s, "evals_left_out": 1} for s in (2, 4)] + [{"step": STEPS, **top1}]
    assert measured == [(2, {}), (4, {}), (STEPS, top1)]
    rows, _ = lines(tmp_path / "b")
    assert rows == [{"step": step, **top1} for step in (2, 4, STEPS)]
