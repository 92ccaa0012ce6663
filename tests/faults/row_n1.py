"""N1: NaN and infinity in the loss, gradient, parameters or statistics of some steps in a row."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipjax import train_step
from clipjax.losses import make_loss
from clipjax.losses.objectives import as_objective
from clipjax.skipped_steps import SkippedSteps
from clipjax.train_state import create_train_state
from clipjax.trees import flatten_with_names
from tests.faults.numeric_fault import FAULT
from tests.faults.row import Row, Trial
from tests.faults.row_kill import STEPS as RUN_STEPS
from tests.faults.row_kill import Run

DEVICES, BATCH, WIDTH = 4, 8, 8
KINDS = ("parameters", "statistics", "gradient", "loss")
VALUES = {"nan": 8, "inf": 7, "-inf": 6}  # the token that stands for it
POISON = jnp.array([0, 0, 0, 0, 0, 0, -jnp.inf, jnp.inf, jnp.nan])
COUNTS = (6, 1, 2, 5)
LIMIT, FIRST, LAST = 5, 3, 14
IN_PROCESS = tuple(itertools.product(COUNTS, VALUES, KINDS))

RUN_FIRST = 12  # the first spoilt step, so that step 12 is the last good one
RUNS = (
    ("loss:nan", 50, 6),
    ("gradient:inf", 1, 6),
    ("parameters:nan", 50, 6),
    ("parameters:nan", 1, 2),
    ("huge:1e30", 50, 1),  # the last one is what is kept
    ("huge:1e30", 1, 2),
)


def poison_of(tokens):
    """What a row's token adds, `[b]`."""
    return POISON[tokens[:, 0]]


@jax.custom_vjp
def spoil_gradient(x, added):
    return x


spoil_gradient.defvjp(
    lambda x, added: (x, added), lambda added, g: (g + added[:, None], jnp.zeros_like(added))
)


def model(kind):
    """apply_fn of a linear model that keeps a mean of its images."""

    def apply(variables, images, tokens, **_):
        params, seen = variables["params"], images.reshape(len(images), -1)
        rows = [seen @ params["image"], params["text"][tokens].mean(axis=1)]
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
        mean = 0.9 * variables["statistics"]["mean"] + 0.1 * seen.mean(axis=0)
        if kind == "statistics":
            mean = mean + poison_of(tokens).sum()
        return (image, text, params["logit_scale"], None), {"statistics": {"mean": mean}}

    return apply


class Objective:
    """The loss of CLIP, spoilt by a row of the batch."""

    needs = ()

    def __init__(self, kind):
        self.kind, self.pairs = kind, as_objective(make_loss("clip", layout="dense"))

    def __call__(self, outputs, batch, rng):
        added = poison_of(batch["text"])
        if self.kind == "gradient":
            embeds = spoil_gradient(outputs.image_embeds, added)
            outputs = outputs._replace(image_embeds=embeds)
        loss, metrics = self.pairs(outputs, batch, rng)
        return loss + (jax.lax.stop_gradient(added.sum()) if self.kind == "loss" else 0), metrics


def optimizer():
    """Adam, whose state has what it adds to the first kernel: [steps, rows]."""
    adam = optax.adam(1e-2)

    def init(params):
        return {"adam": adam.init(params), "added": jnp.zeros((LAST, WIDTH))}

    def update(updates, state, params=None, *, step, **_):
        updates, inner = adam.update(updates, state["adam"], params)
        added = state["added"][step][:, None]
        return {**updates, "image": updates["image"] + added}, {**state, "adam": inner}

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class Program:
    step: object
    state: object  # of step 0, on the host
    shardings: object


@functools.cache
def program(kind):
    """The jitted step and its first state; the first kernel is cut over the devices."""
    assert len(jax.devices()) >= DEVICES, "the row needs several devices"
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    rng = np.random.default_rng(0)
    params = {
        "image": rng.normal(size=(WIDTH, 4)).astype(np.float32),
        "text": rng.normal(size=(len(POISON), 4)).astype(np.float32),
        "logit_scale": np.float32(2),
    }
    variables = {"params": params, "statistics": {"mean": np.zeros(WIDTH, np.float32)}}
    tx = optimizer()
    state = jax.device_get(create_train_state(variables, tx, with_ema=True))

    def sharding(path, _):
        cut = "image" in jax.tree_util.keystr(path)
        return NamedSharding(mesh, PartitionSpec("data") if cut else PartitionSpec())

    shardings = jax.tree_util.tree_map_with_path(sharding, state)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    step = train_step.make_train_step(model(kind), Objective(kind), tx, ema_decay=0.9)
    jitted = jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None))
    return Program(jitted, state, shardings)


def batch_of(step, token, row):
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 6, (BATCH, 1), dtype=np.int32)
    if token is not None:
        tokens[row] = token
    return {"image": rng.normal(size=(BATCH, 2, 2, 2)).astype(np.float32), "text": tokens}


def assert_replicas_agree(state):
    """Each part of each leaf is the same on all devices that hold it."""
    for name, leaf in flatten_with_names(state):
        parts = {}
        for shard in leaf.addressable_shards:
            found = parts.setdefault(str(shard.index), np.asarray(shard.data).tobytes())
            assert found == np.asarray(shard.data).tobytes(), f"{name} differs between devices"


def in_process(trial: Trial, steps=program) -> None:
    """Steps of a linear model on four devices; one of them has what is not finite."""
    count, value, kind = IN_PROCESS[trial.index % len(IN_PROCESS)]
    device = trial.index % DEVICES
    made = steps(kind)
    spoilt = range(FIRST, FIRST + count)
    added = np.zeros((LAST, WIDTH), np.float32)
    if kind == "parameters":
        added[list(spoilt), device * WIDTH // DEVICES] = float(value)
    host = made.state.replace(opt_state={**made.state.opt_state, "added": added})
    state = jax.device_put(host, made.shardings)
    skipped = SkippedSteps(
        None, in_a_row=LIMIT, fraction=0.9, total_steps=LAST, examples=lambda step: []
    )
    stopped = None
    for step in range(LAST):
        token = VALUES[value] if step in spoilt and kind != "parameters" else None
        before = state
        state, metrics = made.step(state, batch_of(step, token, device * BATCH // DEVICES))
        assert_replicas_agree(state)
        for part in ("params", "opt_state", "model_state", "ema_params"):
            old, new = (jax.device_get(getattr(x, part)) for x in (before, state))
            same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), old, new)
            if step in spoilt:
                assert all(jax.tree.leaves(same)), f"step {step} was not finite and wrote {part}"
            else:
                assert not all(jax.tree.leaves(same)), f"step {step} wrote nothing to {part}"
        if skipped.give(step + 1, metrics["skipped_in_a_row"]):
            stopped = step + 1
            break
    assert int(state.skipped) == min(count, int(state.step) - FIRST)
    if count < LIMIT:
        assert stopped is None, f"{count} in a row ended it at step {stopped}"
        return
    reached = FIRST + LIMIT  # its number
    assert stopped is not None and stopped <= reached + 2, f"limit at {reached}, end at {stopped}"


def in_command(trial: Trial) -> None:
    """`clipjax train` ends with 81, keeps the step from before, and goes on from it."""
    fault, log_every, last = RUNS[trial.index - len(IN_PROCESS)]
    run = Run(trial, warm=True)
    flags = [f"--config.log_every={log_every}"]
    if is_huge := fault.startswith("huge"):
        count, good, limit = 1, 10, 8
        flags += [f"--config.checkpoint.keep={last}", "--config.checkpoint.every_steps=5"]
        flags.append(f"--config.max_skipped_in_a_row={limit}")
    else:
        count, good, limit = last, RUN_FIRST, LIMIT
    spoil = {FAULT: f"{fault}:{RUN_FIRST}:{count}"}
    start = run.start(*flags, prepare="tests.faults.numeric_fault:prepare", **spoil)
    code, said = start.wait(), run.log.read_text(errors="replace")
    ends = is_huge or count >= limit
    assert code == (81 if ends else 0), f"exit {code}: {said[-2000:]}"
    if ends:
        assert f"--resume_step={good} goes back to it" in said, said[-2000:]
        record = json.loads((run.workdir / "exit.json").read_text())
        reached = RUN_FIRST + limit + is_huge
        assert record["code"] == 81 and record["step"] <= reached + 2, record
        assert good in run.steps(), f"kept are {run.steps()}, without {good}"
        run.finish(*flags, f"--resume_step={good}")
    rows = [row for row in run.rows() if "loss" in row]
    assert rows[-1]["step"] == RUN_STEPS and np.isfinite(rows[-1]["loss"]), rows[-1]
    assert rows[-1]["skipped"] == (0 if ends else count), rows[-1]


def strike(trial: Trial) -> None:
    (in_process if trial.index < len(IN_PROCESS) else in_command)(trial)


def without_vote(trial: Trial) -> None:
    """What was done before: what a step would write is not looked at."""
    vote, train_step.all_finite = train_step.all_finite, lambda tree: jnp.array(True)
    try:
        in_process(trial, program.__wrapped__)
    finally:
        train_step.all_finite = vote


ROWS = [
    Row(
        name="N1",
        fault="NaN, inf, -inf in loss, gradient, parameters, statistics, of one device of four; "
        "1, 2, 5, 6 in a row; in `clipjax train`, too, logging each or no step; parameters x 1e30",
        holds="the step writes nothing, all devices agree; exit 81 within 2 steps of the limit; "
        "the step from before is kept, --resume_step goes there",
        trials=len(IN_PROCESS) + len(RUNS),
        default=2,
        run=strike,
        control=without_vote,
        others="none found",
    )
]
