"""The train step: a pure function from (state, batch) to (state, metrics)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax import diagnostics, spike_guard
from clipjax.averages import average_of, ramped
from clipjax.averages import update as update_averages
from clipjax.grad_cache import value_and_grad
from clipjax.layers.color_jitter import ColorJitter
from clipjax.losses.objectives import (
    PairObjective,
    apply_objective,
    as_objective,
    check_no_variables,
    join_variables,
    split_variables,
)
from clipjax.models.clip import CLIPOutput
from clipjax.models.images import normalise_images
from clipjax.optim import zero_rows
from clipjax.train_state import OBJECTIVE_STREAM, Output, TrainState, apply_model
from clipjax.trees import map_with_names

# apply_fn(variables, images, tokens, *, train, example_ids, rngs[, mutable]) -> CLIPOutput
ApplyFn = Callable[..., Any]
LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    dtype: Any = jnp.float32,
    max_logit_scale: float | None = 100.0,
    schedule: optax.Schedule | None = None,
    ema_decay: float | None = None,
    averages: Mapping[str, float] | None = None,
    frozen: Callable[[str], bool] = lambda name: False,
    held: Mapping[str, np.ndarray] | None = None,
    cast: Callable[[str], bool] = lambda name: False,
    merge: Callable[[Any], Any] | None = None,
    num_micro_batches: int = 1,
    color_jitter: ColorJitter | None = None,
    spike_factor: float | None = None,
    diagnosed_rows: int = 0,
) -> StepFn:
    """Makes a training step; jit it, with a donated state.

    A step whose loss or gradient is not finite changes nothing but the counts.

    Args:
        apply_fn: the model, as `flax.linen.Module.apply` of ours or a function of your own:
            `apply_fn(variables, images, tokens, *, train, example_ids, rngs)` gives a `CLIPOutput`
            or a tuple of the same: unit embeddings `[b, embed]` of the images and of the texts, the
            LOG of the scale, and the bias or None. `variables` is {"params": ...} and the state's
            other collections; if there are any, it also takes `mutable` and gives (output, changed
            collections). `rngs` is {"dropout": key}, `example_ids` `[b]` int32 key the draws. An
            objective that needs tokens has it called with `with_tokens=` its `needs`, too: image
            tokens `[b, positions, width]` and text tokens `[b, L, width]` then follow the bias,
            None for those that are not needed.
        loss_fn: of `make_loss`: (image_embeds, text_embeds, logit_scale, logit_bias) ->
            (loss, metrics). Or an objective: an object with `needs`, a tuple of `image_tokens` and
            `text_tokens` or (), that is called with (outputs, batch, rng); see docs/losses.md.
        tx: an optimizer of optax.
        seed: of the draws; the key of step i is `fold_in(key(seed), i)`.
        image_mean: channel means, of pixels in [0, 1], for images of 0..255, uint8 or floats; None
            for images that are normalised already.
        image_std: channel deviations, likewise.
        dtype: that the images enter the model in.
        max_logit_scale: the scale exp(params["logit_scale"]) is clamped to [1, this] after the
            update; None leaves it as it is.
        schedule: of the learning rate, for the metrics.
        ema_decay: of the parameters' moving average; None where the state keeps none.
        averages: decays of other averages by name, as the state was created with.
        frozen: parameters by name ("image_encoder/conv1/kernel") that take no gradient.
        held: rows of others that take none, see `clipjax.optim.held_rows`.
        cast: parameters by name that the model uses in `dtype` only: they are cast to it once a
            step, and not at every use; the update is of the parameters themselves.
        merge: makes the parameters that the model computes with of those that are trained, such as
            those that differ by a product of low rank; None takes them as they are.
        num_micro_batches: above 1, gradient caching: the exact gradient of the whole batch in the
            memory of one micro-batch. The scale is then params["logit_scale"], the bias
            params["logit_bias"].
        color_jitter: of the images, before they are normalised; None leaves them as they are.
        spike_factor: a step is left out, too, where the norm of its gradient is above this times
            the mean of those before it, see `clipjax.spike_guard`; for a state that was created
            `with_spike_guard`.
        diagnosed_rows: above 0, the metrics of `clipjax.diagnostics` besides, for a model of ours:
            the embeddings of the first so many rows are made again.

    Returns:
        step(state, {"image": [b, H, W, 3], "text": i32[b, L]}) -> (state, metrics): the state of
        `create_train_state`; metrics of float32 scalars: those of the loss, `loss`, `grad_norm`,
        `skipped` and `skipped_in_a_row` (steps), with a schedule `learning_rate`, and with a
        spike factor `spikes` (steps).

    Raises:
        ValueError: one of image_mean and image_std without the other, or a number out of range;
            gradient caching for an objective that is no loss of pairs; and when traced, a batch
            that is not as above or does not divide into the micro-batches, integer images without
            a mean, gradient caching for a model that keeps statistics of its batches, or
            parameters without the "logit_scale" that is to be clamped.

    Example:
        ```python
        import clipjax, jax, jax.numpy as jnp, optax

        def apply_fn(variables, images, tokens, **_):
            params = variables["params"]
            image = images.reshape(len(images), -1) @ params["image"]
            rows = [image, params["text"][tokens].mean(axis=1)]
            image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
            return image, text, params["logit_scale"], None

        params = {"image": jnp.eye(12, 4), "text": jax.random.normal(jax.random.key(1), (9, 4))}
        params["logit_scale"] = jnp.array(2.0)
        tx = optax.adamw(1e-3)
        state = clipjax.create_train_state({"params": params}, tx)
        step = jax.jit(clipjax.make_train_step(apply_fn, clipjax.make_loss("clip"), tx))
        images = jax.random.normal(jax.random.key(0), (8, 2, 2, 3))
        batch = {"image": images, "text": jnp.arange(8)[:, None]}
        for _ in range(3):
            state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        ```
    """
    _check_numbers(image_mean, image_std, max_logit_scale, num_micro_batches)
    if spike_factor is not None and not spike_factor > 1:
        raise ValueError(f"spike_factor = {spike_factor}: it is above 1, or None")
    tx = optax.with_extra_args_support(tx)
    objective, rows = as_objective(loss_fn), held or {}
    if num_micro_batches > 1 and not isinstance(objective, PairObjective):
        raise ValueError(
            f"num_micro_batches = {num_micro_batches}: gradient caching is exact for losses of "
            f"pairs only, and {type(objective).__name__} is none: use the whole batch at once"
        )

    def model_images(batch: Any, key: jax.Array) -> Any:
        """What the model takes of a batch."""
        images = batch["image"]
        if color_jitter is not None:
            images = color_jitter(images, key, batch["example_ids"])
        if image_mean is not None and image_std is not None:
            if isinstance(images, jax.Array) and images.shape[3:] != (len(image_mean),):
                raise ValueError(f'batch["image"] is {images.shape}, expected [b, H, W, 3]')
            return normalise_images(images, image_mean, image_std, dtype)
        if any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(images)):
            raise ValueError(
                'batch["image"] holds integers: give image_mean and image_std to normalise them, '
                "or images that are normalised already"
            )
        return jax.tree.map(lambda x: x.astype(dtype), images)

    def is_fixed(name: str) -> bool:
        return frozen(name) or (name in rows and bool(rows[name].all()))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        _check_batch(batch, num_micro_batches)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        examples = {**batch, "example_ids": jnp.arange(batch["text"].shape[0])}
        kept, kept_by_objective = split_variables(state.model_state)
        params = state.params if merge else _cast_once(state.params, dtype, cast)

        def effective(params: Any) -> Any:
            return params if merge is None else _cast_once(merge(params), dtype, cast)

        def trained(params: Any) -> Any:
            return effective(
                map_with_names(
                    lambda name, p: jax.lax.stop_gradient(p) if is_fixed(name) else p, params
                )
            )

        def apply(params: Any, images: Any, micro: Any) -> tuple[Output, Any]:
            """The output and the model's state after it."""
            return apply_model(apply_fn, objective, {"params": params, **kept}, images, micro, key)

        def encode(params: Any, micro: Any) -> tuple[jax.Array, jax.Array]:
            output, _ = apply(trained(params), model_images(micro, key), micro)
            return output.image_embeds, output.text_embeds

        def head(params: Any, images: jax.Array, texts: jax.Array) -> tuple[jax.Array, Any]:
            params = trained(params)
            scale, bias = params["logit_scale"], params.get("logit_bias")
            return objective(CLIPOutput(images, texts, scale, bias), examples, None)

        def whole(params: Any) -> tuple[jax.Array, Any]:
            of_model, own = split_variables({"params": trained(params)})
            images = model_images(examples, key)
            output, model_state = apply(of_model["params"], images, examples)
            own, seen = {**own, **kept_by_objective}, {**examples, "image": images}
            rng = jax.random.fold_in(key, OBJECTIVE_STREAM)
            if not own:
                check_no_variables(objective, rng, output, seen)
            (loss, metrics), own_state = apply_objective(objective, own, output, seen, rng)
            return loss, (metrics, join_variables(model_state, own_state))

        if num_micro_batches == 1:
            (loss, (metrics, model_state)), grads = jax.value_and_grad(whole, has_aux=True)(params)
        else:
            check_stateless(state.model_state, num_micro_batches)
            model_state = state.model_state
            (loss, metrics), grads = value_and_grad(
                encode, head, params, examples, num_micro=num_micro_batches
            )
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        grads = zero_rows(grads, rows)
        new_state, grad_norm = update_state(
            state,
            grads,
            loss,
            tx,
            model_state=model_state,
            max_logit_scale=max_logit_scale,
            ema_decay=ema_decay,
            averages=averages or {},
            spike_factor=spike_factor,
        )
        if spike_factor is not None:
            metrics = {**metrics, "spikes": new_state.spike_guard["spikes"]}
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        metrics["skipped"] = new_state.skipped
        metrics["skipped_in_a_row"] = new_state.skipped_in_a_row
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step)
        if diagnosed_rows:
            changes = jax.tree.map(jnp.subtract, new_state.params, state.params)
            parts = {"grad_rms": grads, "param_rms": state.params, "update_rms": changes}
            for name, tree in parts.items():
                metrics |= diagnostics.rms_by_group(name, tree)
            some = {k: jax.tree.map(lambda x: x[:diagnosed_rows], examples[k]) for k in examples}
            (output, sown) = apply_fn(
                {**split_variables({"params": effective(params)})[0], **kept},
                model_images(some, key),
                some["text"],
                train=True,
                example_ids=some["example_ids"],
                rngs={"dropout": key},
                mutable=[*kept, diagnostics.INTERMEDIATES],
            )
            embeds = {"image": output.image_embeds, "text": output.text_embeds}
            norms = sown.get(diagnostics.INTERMEDIATES, {})
            metrics |= diagnostics.of_embeddings(embeds, norms)
        return new_state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return step


def _check_numbers(
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
    max_logit_scale: float | None,
    num_micro_batches: int,
) -> None:
    if (image_mean is None) != (image_std is None):
        raise ValueError(
            f"image_mean = {image_mean}, image_std = {image_std}: give both, or neither for images "
            "that are normalised already"
        )
    # A mean may lie outside of [0, 1] where a model shifts its pixels; above 10 it is of 0..255.
    if image_mean is not None and not all(-10 <= mean <= 10 for mean in image_mean):
        raise ValueError(
            f"image_mean = {image_mean}: means are of pixels in [0, 1]; divide those of 0..255 by "
            "255, and so image_std"
        )
    if image_std is not None and not all(0 < std <= 10 for std in image_std):
        raise ValueError(
            f"image_std = {image_std}: deviations are of pixels in [0, 1] and above 0; divide "
            "those of 0..255 by 255"
        )
    if max_logit_scale is not None and not max_logit_scale >= 1:
        raise ValueError(f"max_logit_scale = {max_logit_scale}: it is at least 1, or None")
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches = {num_micro_batches}: it is at least 1")


def _check_batch(batch: Any, num_micro_batches: int) -> None:
    """Checks what is known of a batch when a step is traced: keys, shapes and dtypes."""
    if not isinstance(batch, Mapping) or not {"image", "text"} <= set(batch):
        found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f'the batch is {{"image": ..., "text": ...}}, found {found or "no keys"}')
    size = batch["text"].shape[0]
    if not jnp.issubdtype(batch["text"].dtype, jnp.integer):
        raise ValueError(f'batch["text"] is {batch["text"].dtype}: token ids are int32')
    for leaf in jax.tree.leaves(batch["image"]):
        if leaf.shape[0] != size:
            raise ValueError(f'batch["image"] has {leaf.shape[0]} rows, batch["text"] {size}')
    if size % num_micro_batches:
        raise ValueError(
            f"the batch of {size} does not divide into num_micro_batches = {num_micro_batches}"
        )


def check_stateless(
    model_state: Any, num_micro_batches: int, *, name: str = "num_micro_batches"
) -> None:
    """Refuses gradient caching for a model that keeps statistics of its batches.

    Args:
        model_state: collections of the model's variables beside the parameters, by name.
        num_micro_batches: 1 is no gradient caching.
        name: of what asks for it, for the message.

    Raises:
        ValueError: names the collections.
    """
    if model_state and num_micro_batches > 1:
        raise ValueError(
            f"{name} cuts the batch into {num_micro_batches}, but the model keeps "
            f"{', '.join(model_state)}: batch normalisation over a micro-batch is not that over "
            f"the batch; leave {name} out, or choose a ViT"
        )


def _cast_once(params: Any, dtype: Any, cast: Callable[[str], bool]) -> Any:
    """The parameters as the model multiplies by them: a copy of those that it casts."""
    copies = map_with_names(lambda name, p: p.astype(dtype) if cast(name) else p, params)
    if jax.tree.map(jnp.dtype, copies) == jax.tree.map(jnp.dtype, params):
        return params
    # Else the compiler may cast again at each use, which reads twice the bytes of the copy.
    return jax.lax.optimization_barrier(copies)


def update_state(
    state: TrainState,
    grads: Any,
    loss: jax.Array,
    tx: optax.GradientTransformationExtraArgs,
    *,
    model_state: Any,
    max_logit_scale: float | None,
    ema_decay: float | None,
    averages: Mapping[str, float] | None = None,
    spike_factor: float | None = None,
) -> tuple[TrainState, jax.Array]:
    """Applies the gradient if all is finite on all devices; otherwise only counts the step.

    With a factor, a step whose gradient is a spike is left out, too, and counted apart: its numbers
    are sound, so it is none of the skipped ones and ends their row.

    Loss, gradient and all that the step would write but the optimizer's state, which may hold
    infinities, are voted on. The verdict is over the whole mesh, so every device sees the same.
    The step moves on either way: the data and the schedule do not slip.
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
    params = clamp_logit_scale(optax.apply_updates(state.params, updates), max_logit_scale)
    ema_params = state.ema_params
    if ema_decay is not None:
        ema_params = average_of(params, ema_params, ramped(ema_decay, state.step))
    averaged = state.averages
    if averages:
        averaged = update_averages(averaged, params, averages, state.step)

    finite &= all_finite((params, model_state, () if ema_decay is None else ema_params, averaged))

    taken, guard = finite, state.spike_guard
    if spike_factor is not None:
        if guard is None:
            raise ValueError(
                f"spike_factor = {spike_factor}: the state keeps no mean of the gradient's norm; "
                "create it with create_train_state(..., with_spike_guard=True)"
            )
        spike, guard = spike_guard.judge(guard, grad_norm, finite, spike_factor)
        taken = finite & ~spike

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)

    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=choose(params, state.params),
        opt_state=choose(opt_state, state.opt_state),
        model_state=choose(model_state, state.model_state),
        ema_params=choose(ema_params, state.ema_params),
        averages=choose(averaged, state.averages),
        skipped=state.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        spike_guard=guard,
    )
    return new_state, grad_norm


def all_finite(tree: Any) -> jax.Array:
    """Whether no number of a tree is NaN or infinite, `[]` bool."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    bad = jnp.stack([~jnp.all(jnp.isfinite(x)) for x in floats]).astype(jnp.float32)
    # A dot product is computed once. Another reduction of the stack XLA may fuse into whatever asks
    # for the verdict: on a CPU every element of the new state went through the stack anew.
    return jnp.dot(bad, bad) == 0


def clamp_logit_scale(params: Mapping[str, Any], maximum: float | None) -> dict[str, Any]:
    """Clamps the parameter to [0, ln maximum], after the update (openai/CLIP, section 2.5)."""
    if maximum is None:
        return dict(params)
    if "logit_scale" not in params:
        raise ValueError(
            f"max_logit_scale = {maximum} clamps params['logit_scale'], and the parameters are "
            f"{', '.join(params)}: name the scale so, or give max_logit_scale=None"
        )
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, math.log(maximum))}
