"""Learning-rate schedules, as functions of the training step."""

import optax


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine (arXiv:1608.03983) or a constant.

    Args:
        name: `cosine` or `constant`.
        learning_rate: at the end of the warm-up.
        total_steps: where the cosine ends.
        warmup_steps: steps of the warm-up.
        end_fraction: of the learning rate, at total_steps.

    Raises:
        ValueError: an unknown name.
    """
    if name == "cosine":
        main = optax.cosine_decay_schedule(
            learning_rate, total_steps - warmup_steps, alpha=end_fraction
        )
    elif name == "constant":
        main = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"config.schedule.name = {name!r}: allowed are cosine, constant")
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])
