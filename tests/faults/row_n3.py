"""N3: inputs and parameters at the edges, through the step that a run has: in f32 and in bf16."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.experiment import build_program, resolve
from clipjax.partitioning import global_batch
from clipjax.trees import map_with_names
from tests.faults.row import Row, Trial
from tests.faults.tiny_run import get_config

VOCABULARY, LENGTH, BATCH, STEPS = 64, 16, 8, 3
RUNAWAY = (("^logit_scale$", 1e6),)  # the scale alone is driven


@functools.cache
def program(dtype, loss, batch_size, lr_scale):
    config = get_config(f"batch_size={batch_size}")
    config.dtype, config.loss.name = dtype, loss
    config.model.text.vocab_size = VOCABULARY
    config.model.logit_bias = -10.0 if loss == "siglip" else None
    config.optimizer.lr_scale, config.schedule.warmup_steps = lr_scale, 0
    config.remat = "none"
    return build_program(resolve(config, to_run=False), jax.devices()[:1])


def batch_of(size):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        "text": rng.integers(1, VOCABULARY, (size, LENGTH), dtype=np.int32),
    }


def filled(part, value):
    """All rows hold one number."""
    return lambda batch: {**batch, part: np.full_like(batch[part], value)}


def repeated(*parts):
    """All rows are the first one."""
    return lambda batch: {
        **batch,
        **{part: np.repeat(batch[part][:1], len(batch[part]), 0) for part in parts},
    }


def rolled(batch):
    """No caption is its image's, once that was learned: the gradient is the largest."""
    return {**batch, "text": np.roll(batch["text"], 1, 0)}


def times(factor, *parts):
    """Multiplies parameters."""
    return lambda params: map_with_names(
        lambda name, x: x * factor if any(part in name for part in parts) else x, params
    )


def scale_at(value):
    return lambda params: {**params, "logit_scale": jnp.full_like(params["logit_scale"], value)}


def bias_at(value):
    return lambda params: {**params, "logit_bias": jnp.full_like(params["logit_bias"], value)}


HIGHEST = float(np.log(100.0))
# name -> (fields of the program, change of the batch, change of the parameters)
CASES = {
    "all-pad text": ({}, filled("text", 0), None),
    "the last token everywhere": ({}, filled("text", VOCABULARY - 1), None),
    "identical captions": ({}, repeated("text"), None),
    "identical images": ({}, repeated("image"), None),
    "identical pairs at the highest scale": ({}, repeated("image", "text"), scale_at(HIGHEST)),
    "black images": ({}, filled("image", 0), None),
    "white images": ({}, filled("image", 255), None),
    "wrong pairs at the highest scale": ({}, rolled, scale_at(HIGHEST)),
    "scale of 1": ({}, None, scale_at(0.0)),
    "scale below 1": ({}, None, scale_at(-20.0)),
    "runaway scale": ({"lr_scale": RUNAWAY}, None, None),
    "zero image embeddings": ({}, None, times(0, "image_projection")),
    "zero embeddings of both towers": ({}, None, times(0, "_projection")),
    "tiny embeddings": ({}, None, times(1e-15, "_projection")),
    "huge embeddings": ({}, None, times(1e15, "_projection")),
    "gains of 0": ({}, None, times(0, "scale")),
    "one pair": ({"batch_size": 1}, None, None),
    "siglip, one pair": ({"loss": "siglip", "batch_size": 1}, None, None),
    "siglip, bias of 1e4": ({"loss": "siglip"}, None, bias_at(1e4)),
    "siglip, zero embeddings": ({"loss": "siglip"}, None, times(0, "_projection")),
}
TRIALS = tuple(itertools.product(CASES, ("float32", "bfloat16")))


def numbers_of(trial, spoil=lambda params: params):
    """(loss, norm of the gradient, scale, skipped) of each step."""
    name, dtype = TRIALS[trial.index]
    fields, of_batch, of_params = CASES[name]
    fields = {"loss": "clip", "batch_size": BATCH, "lr_scale": (), **fields}
    made = program(dtype, **fields)
    batch = (of_batch or (lambda batch: batch))(batch_of(fields["batch_size"]))
    found = []
    with made.scope():
        state = made.create_state(0)
        params = spoil((of_params or (lambda params: params))(state.params))
        state = state.replace(params=params)
        for _ in range(STEPS):
            state, metrics = made.step(state, global_batch(batch, made.mesh))
            scale = float(jnp.exp(state.params["logit_scale"]))
            found.append((*(float(metrics[x]) for x in ("loss", "grad_norm")), scale))
    return name, dtype, found, int(state.skipped)


def strike(trial: Trial, **changes) -> None:
    """Three steps: all numbers finite, none is skipped, the scale stays at most 100."""
    name, dtype, found, skipped = numbers_of(trial, **changes)
    assert np.isfinite(found).all() and skipped == 0, f"{name}, {dtype}: {found}"
    assert all(1 <= scale <= 100.001 for _, _, scale in found), f"{name}, {dtype}: {found}"
    if name == "runaway scale":
        assert max(abs(np.log(scale) - HIGHEST) for _, _, scale in found) < 1e-3 or (
            min(scale for _, _, scale in found) == 1
        ), f"{dtype}: the scale was not driven: {found}"


def not_finite(trial: Trial) -> None:
    """A parameter that is infinite."""
    strike(trial, spoil=times(jnp.inf, "image_projection"))


ROWS = [
    Row(
        name="N3",
        fault=f"{len(CASES)} corner cases of batches, parameters and the scale, in f32 and bf16",
        holds="loss and gradient are finite, no step is skipped, the scale is at most 100",
        trials=len(TRIALS),
        default=0,  # tests/test_train_step.py has the first of them
        run=strike,
        control=not_finite,
        others="none found",
    )
]
