"""The train step: a pure function from (state, batch) to (state, metrics)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.grad_cache import value_and_grad
from clipjax.layers.color_jitter import ColorJitter
from clipjax.models.clip import CLIP, CLIPOutput
from clipjax.models.images import normalise_images
from clipjax.train_state import TrainState
from clipjax.trees import map_with_names

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: CLIP,
    loss_fn: LossFn,
    tx: optax.GradientTransformationExtraArgs,
    *,
    seed: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    max_logit_scale: float | None = 100.0,
    schedule: optax.Schedule | None = None,
    ema_decay: float | None = None,
    frozen: Callable[[str], bool] = lambda name: False,
    num_micro_batches: int = 1,
    color_jitter: ColorJitter | None = None,
) -> StepFn:
    """Makes the step; jit it with pinned `out_shardings` and a donated state.

    Args:
        model: the two towers.
        loss_fn: of `clipjax.losses.make_loss`.
        tx: of `clipjax.optim.make_optimizer`.
        seed: of the draws; the key of step i is `fold_in(key(seed), i)`.
        image_mean: channel means in [0, 1].
        image_std: channel deviations.
        max_logit_scale: the temperature is clamped after the update; None leaves it as it is.
        schedule: of the learning rate, for the metrics.
        ema_decay: of the parameters' moving average; None where the state keeps none.
        frozen: parameters by name that take no gradient.
        num_micro_batches: above 1, gradient caching.
        color_jitter: of the images, before they are normalised; None leaves them as they are.

    Returns:
        step(state, {"image": u8[b, H, W, 3], "text": i32[b, L]}) -> (state, metrics), metrics being
        float32 scalars. It raises a ValueError when traced with gradient caching for a model that
        keeps statistics of its batches.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        examples = {**batch, "example_ids": jnp.arange(batch["image"].shape[0])}

        def apply(params: Any, micro: Any) -> tuple[CLIPOutput, Any]:
            """The output and the model's state after it."""
            params = map_with_names(
                lambda name, p: jax.lax.stop_gradient(p) if frozen(name) else p, params
            )
            images = micro["image"]
            if color_jitter is not None:
                images = color_jitter(images, key, micro["example_ids"])
            images = normalise_images(images, image_mean, image_std, model.dtype)
            return model.apply(
                {"params": params, **state.model_state},
                images,
                micro["text"],
                train=True,
                example_ids=micro["example_ids"],
                rngs={"dropout": key},
                mutable=list(state.model_state),
            )

        def encode(params: Any, micro: Any) -> tuple[jax.Array, jax.Array]:
            output, _ = apply(params, micro)
            return output.image_embeds, output.text_embeds

        def head(params: Any, images: jax.Array, texts: jax.Array) -> tuple[jax.Array, Any]:
            return loss_fn(images, texts, params["logit_scale"], params.get("logit_bias"))

        def whole(params: Any) -> tuple[jax.Array, Any]:
            output, model_state = apply(params, examples)
            loss, metrics = head(params, output.image_embeds, output.text_embeds)
            return loss, (metrics, model_state)

        if num_micro_batches == 1:
            (loss, (metrics, model_state)), grads = jax.value_and_grad(whole, has_aux=True)(
                state.params
            )
        else:
            _check_stateless(state.model_state, num_micro_batches)
            model_state = state.model_state
            (loss, metrics), grads = value_and_grad(
                encode, head, state.params, examples, num_micro=num_micro_batches
            )
        new_state, grad_norm = _update(
            state,
            grads,
            loss,
            tx,
            model_state=model_state,
            max_logit_scale=max_logit_scale,
            ema_decay=ema_decay,
        )
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        metrics["skipped"] = new_state.skipped
        metrics["skipped_in_a_row"] = new_state.skipped_in_a_row
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step)
        return new_state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return step


def _check_stateless(model_state: Any, num_micro_batches: int) -> None:
    if model_state:
        raise ValueError(
            f"config.micro_batch_size cuts the batch into {num_micro_batches}, but the model "
            f"keeps {', '.join(model_state)}: batch normalisation over a micro-batch is not that "
            "over the batch; leave config.micro_batch_size out, or choose a ViT"
        )


def _update(
    state: TrainState,
    grads: Any,
    loss: jax.Array,
    tx: optax.GradientTransformationExtraArgs,
    *,
    model_state: Any,
    max_logit_scale: float | None,
    ema_decay: float | None,
) -> tuple[TrainState, jax.Array]:
    """Applies the gradient if it is finite on all devices; otherwise only counts the step.

    Loss and gradient norm are sums over the whole mesh, so every device sees the same verdict.
    The step moves on either way: the data and the schedule do not slip.
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
    params = clamp_logit_scale(optax.apply_updates(state.params, updates), max_logit_scale)
    ema_params = state.ema_params
    if ema_decay is not None:
        # A young average forgets its random start faster: the decay ramps up with the steps.
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
        ema_params = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema_params, params)

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=choose(params, state.params),
        opt_state=choose(opt_state, state.opt_state),
        model_state=choose(model_state, state.model_state),
        ema_params=choose(ema_params, state.ema_params),
        skipped=state.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    return new_state, grad_norm


def clamp_logit_scale(params: Mapping[str, Any], maximum: float | None) -> dict[str, Any]:
    """Clamps the parameter to [0, ln maximum], after the update (openai/CLIP, section 2.5)."""
    if maximum is None:
        return dict(params)
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, math.log(maximum))}
