"""Leaving out steps whose gradient is far larger than those before it; off by default.

The mean of the norms is exponential: m_t = d m_{t-1} + (1 - d) min(g_t, factor M_{t-1}), and
M_t = m_t / (1 - d^t) without the bias of its start. Step t is left out where g_t > factor M_{t-1},
once the mean is of `STEPS` norms. A spike enters the mean cut to the limit, so that the mean
follows where the norms stay large, and no run skips its steps for ever.
"""

from typing import Any

import jax
import jax.numpy as jnp

DECAY = 0.99
STEPS = 20


def init() -> dict[str, jax.Array]:
    """What the state keeps: the mean, of how many norms it is, and the spikes so far."""
    zero = jnp.zeros((), jnp.int32)
    return {"mean": jnp.zeros((), jnp.float32), "count": zero, "spikes": zero}


def judge(
    guard: dict[str, jax.Array], grad_norm: jax.Array, finite: jax.Array, factor: float
) -> tuple[jax.Array, dict[str, Any]]:
    """Whether a step is a spike, and the guard after it; a step that is not finite leaves it.

    Args:
        guard: of `init`.
        grad_norm: [], of the whole gradient, before it is clipped.
        finite: [] bool, whether the step is.
        factor: above 1.
    """
    count = guard["count"]
    mean = guard["mean"] / jnp.maximum(1 - DECAY ** count.astype(jnp.float32), 1e-6)
    # Of gradients that were all 0, every other one would be a spike.
    limit = jnp.where((count >= STEPS) & (mean > 0), factor * mean, jnp.inf)
    spike = finite & (grad_norm > limit)
    new = {
        "mean": DECAY * guard["mean"] + (1 - DECAY) * jnp.minimum(grad_norm, limit),
        "count": count + 1,
        "spikes": guard["spikes"] + spike,
    }
    return spike, {name: jnp.where(finite, new[name], guard[name]) for name in guard}
