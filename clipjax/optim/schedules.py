"""Learning-rate schedules, as functions of the training step."""

from collections.abc import Callable, Sequence

import optax

from clipjax.building import build


def _cosine(*, learning_rate: float, steps: int, end_fraction: float) -> optax.Schedule:
    return optax.cosine_decay_schedule(learning_rate, steps, alpha=end_fraction)


def _constant(*, learning_rate: float) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


# What follows the warm-up: of `learning_rate`, `steps` and `end_fraction` it takes what it names.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {"constant": _constant, "cosine": _cosine}


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
    plugins: Sequence[str] = (),
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine (arXiv:1608.03983) or a constant.

    Raises:
        ValueError: an unknown name.
    """
    main = build(
        {"name": name},
        SCHEDULES,
        plugins=plugins,
        learning_rate=learning_rate,
        steps=total_steps - warmup_steps,
        end_fraction=end_fraction,
    )
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])
