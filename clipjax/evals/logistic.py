"""Multinomial logistic regression by L-BFGS on the devices, and the choice of its strength."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax.partitioning import place, replicated

MAX_ITERATIONS = 1000
_SMALLEST_GRADIENT = 1e-5  # of the gradient's norm at zero weights
_SMALLEST_DECREASE = 2e-7  # of the loss in an iteration, beside max(loss, 1): noise of float32

# Strengths: 1e-6 to 1e6 in 96 steps, the first search at every 16th.
_STEPS, _FIRST, _DECADES = 96, 16, 12


class Weights(NamedTuple):
    """Of a linear classifier: `[embed, classes]` and `[classes]`, float32."""

    matrix: jax.Array
    bias: jax.Array


class Fit(NamedTuple):
    """What `fit` found: weights, the mean loss with its penalty, and the number of iterations."""

    weights: Weights
    loss: jax.Array
    iterations: jax.Array


def zeros(embed: int, classes: int, mesh: Any) -> Weights:
    """Weights to start from, on the mesh."""
    shapes = ((embed, classes), (classes,))
    return Weights(*(place(np.zeros(s, np.float32), replicated(mesh)) for s in shapes))


def logits(weights: Weights, features: jax.Array) -> jax.Array:
    """Scores of the classes, `[rows, classes]`."""
    product = jnp.matmul(features, weights.matrix, precision=jax.lax.Precision.HIGHEST)
    return product + weights.bias


def objective(
    weights: Weights, features: jax.Array, labels: jax.Array, mask: jax.Array, strength: jax.Array
) -> jax.Array:
    """(sum over rows of the cross entropy + strength / 2 * |matrix|^2) / rows.

    The bias is not penalised. It is scikit-learn's LogisticRegression with C = 1 / strength,
    divided by the number of rows.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels)
    penalty = 0.5 * strength * jnp.sum(weights.matrix**2)
    return (jnp.sum(losses * mask) + penalty) / jnp.sum(mask)


def _norm(weights: Weights) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in weights))


@functools.partial(jax.jit, static_argnames="max_iterations")
def fit(
    features: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    strength: jax.Array,
    start: Weights,
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Minimises `objective` by L-BFGS (10 pairs, a line search of strong Wolfe conditions).

    Ends where the gradient is 1e-5 of that at zero weights, where the loss no longer falls by what
    float32 resolves, or after `max_iterations`.

    Args:
        features: `[rows, embed]`, float32; rows may lie over the devices.
        labels: `[rows]`, int32.
        mask: `[rows]`, float32, 0 for padding.
        strength: `[]`, float32, lambda.
        start: the weights to begin with.
    """
    solver = optax.lbfgs()

    def loss_of(weights: Weights) -> jax.Array:
        return objective(weights, features, labels, mask, strength)

    value_and_grad = optax.value_and_grad_from_state(loss_of)
    at_zero = jax.grad(loss_of)(jax.tree.map(jnp.zeros_like, start))
    enough = _SMALLEST_GRADIENT * _norm(at_zero)

    def step(carry: Any) -> Any:
        weights, state, number, before, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss_of
        )
        fell = before - value > _SMALLEST_DECREASE * jnp.maximum(jnp.abs(value), 1.0)
        goes_on = fell & (_norm(gradient) > enough)
        return optax.apply_updates(weights, updates), state, number + 1, value, goes_on

    def goes_on(carry: Any) -> jax.Array:
        return carry[-1] & (carry[2] < max_iterations)

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf), jnp.bool_(True))
    weights, _, number, _, _ = jax.lax.while_loop(goes_on, step, first)
    return Fit(weights, loss_of(weights), number)


@functools.partial(jax.jit, static_argnames="k")
def best_classes(weights: Weights, features: jax.Array, *, k: int) -> jax.Array:
    """The classes of the highest scores, `[rows, k]`, the best first."""
    return jax.lax.top_k(logits(weights, features), k)[1]


def sweep(accuracy_of: Callable[[float], float]) -> float:
    """Chooses the strength of the penalty by the accuracy on a validation set.

    1e-6, 1e-4, ..., 1e6 first, then both neighbours of the best at half the distance, again and
    again, down to 8 steps a decade. Of equal accuracies the greater strength counts.

    Reference: arXiv:2103.00020, appendix A.3.
    """
    found: dict[int, float] = {}

    def best() -> int:
        return max(found, key=lambda place: (found[place], place))

    def ask(place: int) -> None:
        if 0 <= place <= _STEPS and place not in found:
            found[place] = accuracy_of(_strength(place))

    for place_ in range(_STEPS, -1, -_FIRST):  # the strongest penalty first: it fits fastest
        ask(place_)
    distance = _FIRST // 2
    while distance:
        middle = best()
        ask(middle + distance)
        ask(middle - distance)
        distance //= 2
    return _strength(best())


def _strength(place_: int) -> float:
    return float(10 ** (_DECADES * place_ / _STEPS - _DECADES / 2))
