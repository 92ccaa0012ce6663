"""The train state: arrays only, so that state, checkpoint and sharding are one tree."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from clipjax import spike_guard
from clipjax.averages import init as init_averages
from clipjax.losses.objectives import (
    init_objective,
    join_variables,
    load_collections,
    split_variables,
)
from clipjax.models.clip import CLIPOutput, CLIPOutputWithTokens, as_output
from clipjax.partitioning.boxes import unbox

# Draws by example take the others: no example has this id.
OBJECTIVE_STREAM = 2**32 - 1
Output = CLIPOutput | CLIPOutputWithTokens


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
        spike_guard: of `clipjax.spike_guard`, or None where there is none.
        averages: of `clipjax.averages`, by name, or None where there are none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    ema_params: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    spike_guard: Any = None
    averages: Any = None


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
    """Adds the variables of an objective to those of a model, whose call is traced only."""
    if not hasattr(objective, "init"):
        return dict(variables)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
    zeros["image"] = zeros["image"].astype(jnp.float32)
    zeros["example_ids"] = jnp.arange(zeros["text"].shape[0])
    outputs, _ = jax.eval_shape(
        lambda tree: apply_model(apply_fn, objective, tree, zeros["image"], zeros, key),
        unbox(dict(variables)),
    )
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
    own = init_objective(objective, jax.random.fold_in(key, OBJECTIVE_STREAM), outputs, zeros)
    return join_variables(variables, own)


def apply_model(
    apply_fn: Callable[..., Any], objective: Any, variables: Any, images: Any, batch: Any, key: Any
) -> tuple[Output, Any]:
    """Calls a model as a training step does.

    Args:
        apply_fn: of the model, see `make_train_step`.
        objective: whose `needs` the model is asked for.
        variables: of the model.
        images: as they enter the model.
        batch: {"text": [b, L], "example_ids": [b]}.
        key: of the dropout.

    Returns:
        (the output, the model's collections but the parameters, after the call).

    Raises:
        ValueError: the model does not give what the objective needs.
    """
    kept = [name for name in variables if name != "params"]
    options: dict[str, Any] = {"mutable": kept} if kept else {}
    if objective.needs:
        options["with_tokens"] = objective.needs
    result = apply_fn(
        variables,
        images,
        batch["text"],
        train=True,
        example_ids=batch["example_ids"],
        rngs={"dropout": key},
        **options,
    )
    given, model_state = result if kept else (result, {})
    output = as_output(given)
    for need in objective.needs:
        if getattr(output, need, None) is None:
            raise ValueError(
                f"{type(objective).__name__} needs {need!r}, and apply_fn, which was asked "
                f"for it by with_tokens={objective.needs!r}, gave none"
            )
    return output, model_state


def create_train_state(
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    *,
    with_ema: bool = False,
    with_spike_guard: bool = False,
    averages: Iterable[str] = (),
    frozen: Callable[[str], bool] = lambda name: False,
    objective: Any = None,
    apply_fn: Callable[..., Any] | None = None,
    batch: Any = None,
    seed: int = 0,
) -> TrainState:
    """Makes the state of step 0. Pure: jit it with `out_shardings` to make it sharded.

    The state holds the very arrays that it is given: where the step donates its state, they are
    gone after the first step.

    Args:
        variables: {"params": ...}, a nested dict of arrays such as a kernel `[width, embed]`; and
            for a model with running statistics, their collections.
        tx: the optimizer, of optax.
        with_ema: whether an average of the parameters is kept.
        with_spike_guard: whether the step has a `spike_factor`.
        averages: names of other averages of the parameters, as the step has them.
        frozen: parameters by name that take no gradient, and so have no average of `averages`.
        objective: what the step minimises, if it is a flax module (docs/losses.md): its variables
            are drawn, or loaded where it has files, and kept beside the model's.
        apply_fn: the model, as for `make_train_step`: an objective's sizes follow from its outputs.
        batch: {"image": f32 `[b, H, W, 3]`, "text": i32 `[b, L]`}, arrays or shapes, likewise.
        seed: of the objective's variables.

    Returns:
        The parameters, the optimizer's state and counts `[]` int32 of steps, done and skipped.

    Raises:
        ValueError: there are no "params", or an objective without apply_fn and batch.

    Example:
        ```python
        import clipjax, jax.numpy as jnp, optax

        variables = {"params": {"kernel": jnp.ones((4, 2)), "logit_scale": jnp.array(2.0)}}
        state = clipjax.create_train_state(variables, optax.adamw(1e-3))
        assert state.step == 0 and state.params["kernel"].shape == (4, 2)
        ```
    """
    if "params" not in variables:
        raise ValueError(
            f"variables holds {', '.join(map(str, variables)) or 'nothing'}: give the parameters "
            "as {'params': ...}"
        )
    if objective is not None:
        variables = _beside_objective(variables, objective, apply_fn, batch, seed)
    model_state = dict(unbox(variables))
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
        spike_guard=spike_guard.init() if with_spike_guard else None,
        averages=init_averages(params, averages, frozen),
    )


def _beside_objective(
    variables: Mapping[str, Any],
    objective: Any,
    apply_fn: Callable[..., Any] | None,
    batch: Any,
    seed: int,
) -> Mapping[str, Any]:
    """The variables of a model and of its objective; those that are there already stay."""
    if not hasattr(objective, "init") or split_variables(variables)[1]:
        return variables
    if apply_fn is None or batch is None:
        raise ValueError(
            f"{type(objective).__name__} is a flax module, whose variables are drawn for the "
            "model's outputs: give create_train_state apply_fn=, the model's, and batch=, one of "
            "the step's"
        )
    drawn = init_with_objective(variables, apply_fn, objective, jax.random.key(seed), batch)
    model, own = split_variables(unbox(drawn))
    return join_variables(model, {**own, **load_collections(objective, own)})
