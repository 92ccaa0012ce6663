"""Learning-rate schedules, as functions of the training step."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from clipjax.building import build
from clipjax.ranges import FieldError


def _cosine(*, learning_rate: float, steps: int, end_fraction: float) -> optax.Schedule:
    return optax.cosine_decay_schedule(learning_rate, steps, alpha=end_fraction)


def _constant(*, learning_rate: float) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


def _linear(*, learning_rate: float, steps: int, end_fraction: float) -> optax.Schedule:
    return optax.linear_schedule(learning_rate, learning_rate * end_fraction, steps)


def _polynomial(
    *, learning_rate: float, steps: int, end_fraction: float, power: float
) -> optax.Schedule:
    end = learning_rate * end_fraction
    return optax.polynomial_schedule(learning_rate, end, power, steps)


def _rsqrt(*, learning_rate: float, timescale_steps: int) -> optax.Schedule:
    """`learning_rate / sqrt(1 + step / timescale)` (arXiv:2106.04560, as big_vision has it)."""

    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate / jnp.sqrt(1.0 + jnp.asarray(step, jnp.float32) / timescale_steps)

    return schedule


# What follows the warm-up: of `learning_rate`, `steps`, `end_fraction`, `power` and
# `timescale_steps` it takes what it names.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "rsqrt": _rsqrt,
}
_REACH_THEIR_END = ("cosine", "linear", "polynomial")


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
    cooldown_steps: int = 0,
    power: float = 1.0,
    timescale_steps: int = 10_000,
    plugins: Sequence[str] = (),
) -> optax.Schedule:
    """Linear warm-up from 0, then the schedule of a name, at last a cooldown.

    Args:
        name: a key of `SCHEDULES` (`cosine`: arXiv:1608.03983), or `module:name` of one's own.
        learning_rate: at the end of the warm-up.
        total_steps: of the run.
        warmup_steps: at its beginning.
        end_fraction: where the decay or the cooldown ends, of what it begins with.
        cooldown_steps: at its end: times `end + (1 - end) left^power`, where `left` falls from 1 to
            0. A constant with one is warm-up, stable, decay (arXiv:2404.06395).
        power: of the cooldown, and of `polynomial`.
        timescale_steps: of `rsqrt`.
        plugins: modules that the name may import.

    Raises:
        ValueError: an unknown name, or a cooldown after what has come to its end by itself.
    """
    if cooldown_steps and name in _REACH_THEIR_END:
        raise FieldError(
            f"cooldown_steps = {cooldown_steps}, and name = {name!r} comes to its end by itself: "
            "set cooldown_steps = 0, or name = 'constant' or 'rsqrt'"
        )
    schedule = build(
        {"name": name},
        SCHEDULES,
        plugins=plugins,
        learning_rate=learning_rate,
        steps=total_steps - warmup_steps,
        end_fraction=end_fraction,
        power=power,
        timescale_steps=timescale_steps,
    )
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    if not cooldown_steps:
        return schedule

    def cooled(step: jax.Array) -> jax.Array:
        left = jnp.clip((total_steps - jnp.asarray(step, jnp.float32)) / cooldown_steps, 0.0, 1.0)
        return schedule(step) * (end_fraction + (1.0 - end_fraction) * left**power)

    return cooled
