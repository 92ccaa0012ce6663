"""What the host does while the devices compute: the next batch is sent, older metrics are read."""

import types
from contextlib import ExitStack

import jax
import numpy as np
import pytest

from clipjax import train
from clipjax.config_fields import CheckpointSettings, Settings

STEPS = 6


class Manager:
    """Of checkpoints: notes when one is made."""

    def __init__(self, events):
        self.events = events

    def check_for_errors(self):
        pass

    def save(self, step, state, **_):
        self.events.append(("save", step))

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
    monkeypatch.setattr(train, "jax", types.SimpleNamespace(**vars(jax) | {"device_get": read}))
    every = changes.pop("save_every", 100)
    settings = Settings(
        total_steps=STEPS,
        tensorboard=False,
        report=False,
        checkpoint=CheckpointSettings(every_steps=every),
        **changes,
    )
    stage = types.SimpleNamespace(step=step, until_step=STEPS, sizes="")
    experiment = types.SimpleNamespace(
        settings=settings,
        workdir=tmp_path,
        evals=(),
        load_init=None,
        metadata={},
        loader=types.SimpleNamespace(
            iterate=lambda start: ((i, {"step": np.int32(i)}) for i in range(start, STEPS)),
            counts=dict,
            bad_state=lambda: {"by_reason": {}, "window": {}},
        ),
        program=types.SimpleNamespace(mesh=None, stages=(stage,), stage_index=lambda step: 0),
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
