"""Moving averages of the trained parameters, several at once, each with its own decay.

An average of a state is the parameters' tree with `optax.MaskedNode` where a parameter is frozen:
its average is the parameter itself, and takes no memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.trees import map_with_names


def init(params: Any, names: Iterable[str], frozen: Callable[[str], bool]) -> Any:
    """The averages of step 0 by name, in arrays of their own; None where there are none."""

    def start(name: str, param: Any) -> Any:
        return optax.MaskedNode() if frozen(name) else jnp.copy(param)

    return {name: map_with_names(start, params) for name in names} or None


def update(averages: Any, params: Any, decays: Mapping[str, float], step: jax.Array) -> Any:
    """The averages after a step: `e <- d e + (1 - d) params`.

    Args:
        averages: by name.
        params: after the step.
        decays: by name.
        step: [] int32, steps done before it. A young average forgets its random start faster: its
            decay is at most `(1 + step) / (10 + step)`.
    """
    return {
        name: average_of(params, averages[name], ramped(decay, step))
        for name, decay in decays.items()
    }


def ramped(decay: float, step: jax.Array) -> jax.Array:
    """The decay of a step, which grows to its value in the first of them."""
    count = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + count) / (10 + count))


def average_of(params: Any, average: Any, decay: jax.Array) -> Any:
    """One average after a step."""

    def one(p: Any, e: Any) -> Any:
        return e if isinstance(e, optax.MaskedNode) else decay * e + (1 - decay) * p

    return jax.tree.map(one, params, average)


def whole(params: Any, average: Any) -> Any:
    """The parameters that a model of an average computes with."""
    return jax.tree.map(lambda p, e: p if isinstance(e, optax.MaskedNode) else e, params, average)


def decay_of(half_life_steps: float) -> float:
    """The decay after which, in so many steps, half of an average is of the steps since."""
    return 0.5 ** (1 / half_life_steps)
