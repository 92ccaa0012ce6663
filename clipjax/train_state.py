"""The train state: arrays only, so that state, checkpoint and sharding are one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    There is no random key in it: the key of step i is `fold_in(key(seed), i)`.

    Attributes:
        step: [] int32, steps done; the data position is a function of it.
        params: the parameters, float32.
        opt_state: of the optimizer.
        model_state: running statistics of the model, by flax collection; {} for most.
        ema_params: exponential moving average of the parameters, or None.
        skipped: [] int32, steps whose update was left out for a non-finite gradient.
        skipped_in_a_row: [] int32, of them, those since the last update.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    ema_params: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_variables(model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Draws the model's variables, with flax's boxes that hold the logical axes.

    Args:
        model: takes (images, tokens).
        key: typed PRNG key.
        batch: {"image": [b, H, W, 3], "text": [b, L]}, arrays or shapes.
    """
    images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
    tokens = jnp.zeros((1, *batch["text"].shape[1:]), jnp.int32)
    return model.init(key, images, tokens)


def create_train_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    example_batch: Any,
    *,
    with_ema: bool = False,
) -> TrainState:
    """Draws the state of step 0. Pure: jit it with `out_shardings` to draw it sharded.

    Args:
        key: typed PRNG key.
        model: takes (images, tokens).
        tx: the optimizer.
        example_batch: {"image": [b, H, W, 3], "text": [b, L]}, arrays or shapes.
        with_ema: whether an average of the parameters is kept.
    """
    variables = dict(nn.unbox(init_variables(model, key, example_batch)))
    return state_of(variables.pop("params"), tx, model_state=variables, with_ema=with_ema)


def state_of(
    params: Any, tx: optax.GradientTransformation, *, model_state: Any, with_ema: bool
) -> TrainState:
    """The state of step 0 with given parameters."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=tx.init(params),
        model_state=model_state,
        # A copy: the state is donated to the step, and a buffer can be donated only once.
        ema_params=jax.tree.map(jnp.copy, params) if with_ema else None,
        skipped=zero,
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
