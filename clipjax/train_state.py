"""The train state: arrays only, so that state, checkpoint and sharding are one tree."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from clipjax.losses.objectives import init_objective, join_variables

# Draws by example take the others: no example has this id.
OBJECTIVE_STREAM = 2**32 - 1


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    There is no random key in it: the key of step i is `fold_in(key(seed), i)`.

    Attributes:
        step: [] int32, steps done; the data position is a function of it.
        params: the parameters, float32.
        opt_state: of the optimizer.
        model_state: what is kept and not optimised, by flax collection: running statistics of the
            model, and under `objective` the objective's own; {} for most.
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


def init_variables(init_fn: Callable[..., Any], key: jax.Array, batch: Any) -> Any:
    """Draws a model's variables, with flax's boxes that hold the logical axes.

    Args:
        init_fn: takes (key, images, tokens), as `flax.linen.Module.init` of our models.
        key: typed PRNG key.
        batch: {"image": [b, H, W, 3], "text": [b, L]}, arrays or shapes.
    """
    images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
    tokens = jnp.zeros((1, *batch["text"].shape[1:]), jnp.int32)
    return init_fn(key, images, tokens)


def init_with_objective(
    variables: Mapping[str, Any], apply_fn: Callable[..., Any], objective: Any, key: Any, batch: Any
) -> dict[str, Any]:
    """Adds the variables of an objective to those of a model; the call of the model is traced only.

    Args:
        variables: of `init_variables`.
        apply_fn: of the model, see `make_train_step`.
        objective: see clipjax/losses/objectives.py.
        key: typed PRNG key.
        batch: as for `init_variables`.
    """
    if not hasattr(objective, "init"):
        return dict(variables)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
    zeros["image"] = zeros["image"].astype(jnp.float32)
    zeros["example_ids"] = jnp.arange(zeros["text"].shape[0])
    outputs = jax.eval_shape(
        lambda tree: apply_fn(tree, zeros["image"], zeros["text"], **with_tokens(objective)),
        meta.unbox(dict(variables)),
    )
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
    own = init_objective(objective, jax.random.fold_in(key, OBJECTIVE_STREAM), outputs, zeros)
    return join_variables(variables, own)


def with_tokens(objective: Any) -> dict[str, Any]:
    """What `apply_fn` is asked for by an objective, besides the embeddings."""
    return {"with_tokens": objective.needs} if objective.needs else {}


def create_train_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """Makes the state of step 0. Pure: jit it with `out_shardings` to make it sharded.

    The state holds the very arrays that it is given: where the step donates its state, they are
    gone after the first step.

    Args:
        variables: {"params": ...}, a nested dict of arrays such as a kernel `[width, embed]`; and
            for a model with running statistics, their collections.
        tx: the optimizer, of optax.
        with_ema: whether an average of the parameters is kept.

    Returns:
        The parameters, the optimizer's state and counts `[]` int32 of steps, done and skipped.

    Raises:
        ValueError: there are no "params".

    Example:
        ```python
        import clipjax, jax.numpy as jnp, optax

        variables = {"params": {"kernel": jnp.ones((4, 2)), "logit_scale": jnp.array(2.0)}}
        state = clipjax.create_train_state(variables, optax.adamw(1e-3))
        assert state.step == 0 and state.params["kernel"].shape == (4, 2)
        ```
    """
    model_state = dict(meta.unbox(variables))
    if "params" not in model_state:
        raise ValueError(
            f"variables holds {', '.join(map(str, variables)) or 'nothing'}: give the parameters "
            "as {'params': ...}"
        )
    params = model_state.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        model_state=model_state,
        # A copy: the state is donated to the step, and a buffer can be donated only once.
        ema_params=jax.tree.map(jnp.copy, params) if with_ema else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
