"""What a run of N1 does to its own steps: `prepare` of a start, told by the variable NUMERIC_FAULT.

`gradient:nan:12:6` spoils the gradient of six steps from step 12 on, `loss` and `parameters`
likewise; `huge:1e30:12:1` multiplies the parameters after step 12, which leaves them finite.
"""

import os

import jax
import jax.numpy as jnp
import optax

from clipjax import train_step

FAULT = "NUMERIC_FAULT"


def spoil_first(tree, value):
    """Adds a value to one number of the first leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    first = leaves[0].ravel().at[0].add(value).reshape(leaves[0].shape)
    return jax.tree.unflatten(treedef, [first, *leaves[1:]])


def prepare():
    """Puts the fault between the gradient and the vote of each step that is traced after this."""
    kind, value, first, count = os.environ[FAULT].split(":")
    update_state = train_step.update_state

    def spoilt(state, grads, loss, tx, **rest):
        strikes = (state.step >= int(first)) & (state.step < int(first) + int(count))
        added = jnp.where(strikes, float(value), 0.0)
        inner = tx

        def update(*arguments, **extra):
            updates, opt_state = inner.update(*arguments, **extra)
            return spoil_first(updates, added), opt_state

        if kind == "gradient":
            grads = spoil_first(grads, added)
        if kind == "loss":
            loss = loss + added
        if kind == "parameters":
            tx = optax.GradientTransformationExtraArgs(tx.init, update)
        new, grad_norm = update_state(state, grads, loss, tx, **rest)
        if kind == "huge":
            factor = jnp.where(strikes, float(value), 1.0)
            new = new.replace(params=jax.tree.map(lambda x: x * factor, new.params))
        return new, grad_norm

    train_step.update_state = spoilt
