"""The optimizer: one optax chain made from plain arguments; and what it does, as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax.building import build
from clipjax.optim.adafactor import scale_by_adafactor
from clipjax.optim.layer_decay import rate_factors
from clipjax.optim.masks import decay_mask, matcher
from clipjax.optim.muon import scale_by_muon
from clipjax.optim.trust_ratio import scale_by_trust_ratio
from clipjax.optim.update_clipping import clip_updates
from clipjax.ranges import FieldError
from clipjax.trees import flatten_with_names, map_with_names


def scale_by_schedule_of_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by `-schedule(step)` with the step of the train state.

    A step that is skipped for a non-finite gradient leaves the optimizer's state as it was. Its own
    count would then lag behind the data, and the schedule would slip by one with every skip.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any, state: optax.EmptyState, params: Any = None, *, step: jax.Array, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        del params
        rate = -schedule(step)
        return jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


# The direction of a step: of `b1`, `b2`, `eps`, `mu_dtype`, and of `momentum` and `rms`, which are
# muon's, it takes what it names.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adafactor": scale_by_adafactor,
    "adamw": optax.scale_by_adam,
    "lamb": optax.scale_by_adam,  # and the trust ratio, behind the decay
    "lion": optax.scale_by_lion,
    "muon": scale_by_muon,
    "stableadamw": optax.scale_by_adam,  # and `clip_update`
}


def make_optimizer(
    params: Any,
    *,
    schedule: optax.Schedule,
    name: str = "adamw",
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-6,
    weight_decay: float = 0.2,
    mask: str = "openai",
    clip_norm: float | None = None,
    clip_update: bool = False,
    mu_dtype: str = "float32",
    momentum: float = 0.95,
    rms: float | None = 0.2,
    freeze: Sequence[str] | Callable[[str], bool] = (),
    lr_scale: Sequence[tuple[str, float]] = (),
    layer_decay: Sequence[tuple[str, float]] = (),
    plugins: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Makes the chain: clip, moments, decoupled decay (arXiv:1711.05101), factors, learning rate.

    `update` takes the training step as the keyword argument `step`.

    Args:
        params: parameters or their shapes.
        schedule: learning rate by step.
        name: a key of `OPTIMIZERS`, or `module:name` of one's own.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        mask: a name of DECAY_MASKS.
        clip_norm: of the global gradient over the trained parameters; None clips nothing.
        clip_update: see `clipjax.optim.update_clipping`; of `adamw`, which then is `stableadamw`.
        mu_dtype: of the first moment.
        momentum, rms: of `muon`, see `clipjax.optim.muon`.
        freeze: regular expressions of parameters that stay fixed, or a function of their names;
            they hold no optimizer state.
        lr_scale, layer_decay: factors of the rate, see `clipjax.optim.layer_decay`.
        plugins: modules that the name may import, see `clipjax.building.resolve`.

    Raises:
        ValueError: an unknown name, a pattern that matches no parameter, or updates of another
            optimizer than Adam that are to be clipped.
    """
    if clip_update and name not in ("adamw", "stableadamw"):
        raise FieldError(f"clip_update = True is of name = 'adamw', and name = {name!r}; set one")
    clip_update = clip_update or name == "stableadamw"
    names = [n for n, _ in flatten_with_names(params)]
    decays = decay_mask(mask)
    chain = [
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        build(
            {"name": name},
            OPTIMIZERS,
            plugins=plugins,
            b1=b1,
            b2=b2,
            eps=eps,
            mu_dtype=jnp.dtype(mu_dtype),
            momentum=momentum,
            rms=rms,
        ),
    ]
    if weight_decay:
        chain.append(
            optax.add_decayed_weights(
                weight_decay, mask=lambda tree: map_with_names(lambda n, _: decays(n), tree)
            )
        )
    if name == "lamb":
        chain.append(scale_by_trust_ratio(decays))
    if lr_scale or layer_decay:
        factor = rate_factors(params, lr_scale, layer_decay)
        chain.append(
            optax.stateless(
                lambda updates, _: map_with_names(
                    lambda n, u: (u * factor(n, u.ndim)).astype(u.dtype), updates
                )
            )
        )
    chain.append(scale_by_schedule_of_step(schedule))
    tx = optax.with_extra_args_support(optax.chain(*chain))
    if clip_update:
        parts = [optax.with_extra_args_support(part) for part in chain]
        tx = clip_updates(parts, 1, b2=b2, eps=eps)
    if not freeze:
        return tx
    frozen = freeze if callable(freeze) else matcher(freeze, names, path="freeze")
    return optax.partition(
        {"trained": tx, "frozen": optax.set_to_zero()},
        map_with_names(lambda n, _: "frozen" if frozen(n) else "trained", params),
    )


def make_stage_optimizers(
    params: Any,
    frozen: Sequence[Callable[[str], bool]],
    *,
    clip_norm: float | None = None,
    **options: Any,
) -> list[optax.GradientTransformationExtraArgs]:
    """Makes the optimizer of each stage of a run, all over one state.

    The state is of the parameters that any stage trains, apart for those that the same stages
    train: in the others they, their moments and the count of their steps stay as they are.

    Args:
        params: parameters or their shapes.
        frozen: of each stage, the parameters by name that stay fixed in it.
        clip_norm: of the gradient over all that the stage trains.
        **options: of `make_optimizer`, but `freeze`.
    """
    direction = make_optimizer(params, **options)
    stages_of = {
        name: tuple(stage for stage, fixed in enumerate(frozen) if not fixed(name))
        for name, _ in flatten_with_names(params)
    }
    labels = map_with_names(lambda name, _: _group(stages_of[name]), params)
    groups = {_group(stages): stages for stages in stages_of.values()}

    def of_stage(stage: int) -> optax.GradientTransformationExtraArgs:
        parts = {
            name: direction if stage in stages else _held(direction)
            for name, stages in groups.items()
            if stages
        }
        if _group(()) in groups:
            parts[_group(())] = optax.with_extra_args_support(optax.set_to_zero())
        return _clipped(optax.partition(parts, labels), clip_norm)

    return [of_stage(stage) for stage in range(len(frozen))]


def _group(stages: tuple[int, ...]) -> str:
    """The name of the state of the parameters that these stages train."""
    return "_".join(["trained", *map(str, stages)]) if stages else "frozen"


def _held(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """No update, over the state of an optimizer, which stays as it is."""

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        del params
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _clipped(
    tx: optax.GradientTransformationExtraArgs, clip_norm: float | None
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient by its norm over all groups, with no state of its own."""
    if clip_norm is None:
        return tx
    clip = optax.clip_by_global_norm(clip_norm)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, _ = clip.update(updates, optax.EmptyState())
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def optimizer_report(
    params: Any,
    *,
    mask: str,
    weight_decay: float,
    freeze: Sequence[str] | Callable[[str], bool] = (),
    held: Mapping[str, np.ndarray] | None = None,
    lr_scale: Sequence[tuple[str, float]] = (),
    layer_decay: Sequence[tuple[str, float]] = (),
) -> str:
    """Lists every parameter with its shape and whether it is decayed, frozen or scaled.

    Args:
        held: of stacks of which some blocks are frozen, see `clipjax.optim.held_rows`.
    """
    leaves = flatten_with_names(params)
    names = [name for name, _ in leaves]
    decays = decay_mask(mask)
    frozen = freeze if callable(freeze) else matcher(freeze, names, path="freeze")
    factor = rate_factors(params, lr_scale, layer_decay)
    rows, totals = [], {"decayed": 0, "not decayed": 0, "frozen": 0}
    for name, leaf in leaves:
        size = int(np.prod(leaf.shape))
        state = "decayed" if decays(name) and weight_decay else "not decayed"
        fixed = (held or {}).get(name, np.array(frozen(name)))
        totals["frozen"] += round(size * fixed.mean())
        totals[state] += size - round(size * fixed.mean())
        if fixed.all():
            state = "frozen"
        elif fixed.any():
            state += f", {fixed.sum()} of {fixed.size} frozen"
        factors = np.ravel(factor(name, len(leaf.shape)))
        span = (
            f"{factors[0]:g}" if factors[0] == factors[-1] else f"{factors[0]:g}..{factors[-1]:g}"
        )
        scale = "" if span == "1" or state == "frozen" else f"lr x {span}"
        rows.append((name, str(tuple(leaf.shape)), f"{size:,}", state, scale))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  " + "  ".join(cells).rstrip() for cells in aligned]
    summary = ", ".join(f"{count:,} {state}" for state, count in totals.items() if count)
    return "\n".join([f"parameters: {summary}", *lines])
