"""N2: gradients that are a thousand times too large at some steps, under `spike_factor`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax.losses import make_loss
from clipjax.losses.objectives import as_objective
from clipjax.spike_guard import STEPS as QUIET
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step
from tests.faults.row import Row, Trial

RUNS, STEPS, SPIKES, FACTOR = 100, 200, 6, 1e3
PAIRS, BATCH, IMAGE, WORDS, WIDTH = 256, 32, 12, 24, 8
GUARD = 10.0  # config.optimizer.spike_factor


@jax.custom_vjp
def amplified(x, factor):
    """x, whose gradient is taken so many times."""
    return x


amplified.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor))
)


class Objective:
    """The loss of CLIP; the batch says how large its gradient is."""

    needs = ()

    def __init__(self):
        self.pairs = as_objective(make_loss("clip", layout="dense"))

    def __call__(self, outputs, batch, rng):
        factor = batch["factor"][0]
        image, text, scale = (amplified(x, factor) for x in outputs[:3])
        outputs = outputs._replace(image_embeds=image, text_embeds=text, logit_scale=scale)
        return self.pairs(outputs, batch, rng)


def apply(variables, images, tokens, **_):
    params = variables["params"]
    rows = [images.reshape(len(images), -1) @ params["image"], params["text"][tokens].sum(axis=1)]
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return image, text, params["logit_scale"], None


@functools.cache
def pairs():
    """Images, and captions of three words each that stand for parts of them, with noise."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, WORDS, (PAIRS, 3), dtype=np.int32)
    image = rng.normal(size=(WORDS, IMAGE))[text].sum(1) + 0.3 * rng.normal(size=(PAIRS, IMAGE))
    return image.astype(np.float32).reshape(PAIRS, 2, 2, 3), text


@functools.cache
def program(spike_factor):
    """A whole run in one call: (factors of the gradient `[steps]`, order) -> (loss, spikes)."""
    tx = optax.adam(optax.cosine_decay_schedule(2e-2, STEPS))
    guarded = spike_factor is not None
    step = make_train_step(apply, Objective(), tx, spike_factor=spike_factor)
    rng = np.random.default_rng(1)
    params = {
        "image": rng.normal(size=(IMAGE, WIDTH)).astype(np.float32),
        "text": rng.normal(size=(WORDS, WIDTH)).astype(np.float32),
        "logit_scale": np.float32(2),
    }
    images, texts = pairs()

    def whole(factors, order):
        state = create_train_state({"params": params}, tx, with_spike_guard=guarded)

        def one(state, at):
            factor, rows = at
            batch = {"image": jnp.asarray(images)[rows], "text": jnp.asarray(texts)[rows]}
            return step(state, {**batch, "factor": jnp.full(len(rows), factor)})

        state, metrics = jax.lax.scan(one, state, (factors, order))
        embeds = apply({"params": state.params}, images, texts)
        loss, _ = make_loss("clip", layout="dense")(*embeds)
        spikes = metrics["spikes"] if guarded else jnp.zeros(STEPS)
        return loss, spikes, metrics["skipped"][-1]

    return jax.jit(whole)


def strike(trial: Trial, *, spike_factor=GUARD) -> None:
    """A run with spikes, and the same without."""
    rng = np.random.default_rng(trial.index)
    order = rng.integers(0, PAIRS, (STEPS, BATCH), dtype=np.int32)
    at = rng.choice(np.arange(QUIET, STEPS), SPIKES, replace=False)
    quiet, factors = np.ones(STEPS, np.float32), np.ones(STEPS, np.float32)
    factors[at] = FACTOR
    clean, _, _ = program(None)(quiet, order)
    loss, spikes, skipped = program(spike_factor)(factors, order)
    found = np.flatnonzero(np.diff(np.concatenate([[0], spikes])))
    assert sorted(at) == list(found), f"left out were the steps {list(found)}, not {sorted(at)}"
    assert skipped == 0, f"{skipped} spikes were counted as not finite"
    assert abs(loss - clean) <= 0.05 * clean, f"the loss ends at {loss}, without spikes {clean}"


def unguarded(trial: Trial) -> None:
    """What is done by default."""
    strike(trial, spike_factor=None)


ROWS = [
    Row(
        name="N2",
        fault=f"{SPIKES} of {STEPS} steps, at random, with a gradient x 1,000; a spike guard of "
        f"{GUARD:g}",
        holds="just those steps are left out and counted; the loss ends within 5 % of the clean "
        "run's",
        trials=RUNS,
        default=0,  # tests/test_spike_guard.py
        run=strike,
        control=unguarded,
        others="none found",
    )
]
