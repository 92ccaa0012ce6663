"""Steps on accelerators compute the pooled token alone in the last block: the same gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import inputs, model_and_params, tiny_spec

from clipjax.layers import transformer
from clipjax.layers.execution import Execution
from clipjax.layers.remat import REMAT

BERT = {
    "name": "bert", "vocab_size": 64, "context_length": 8, "width": 16, "depth": 3,
    "num_heads": 2, "mlp_dim": 32,
}  # fmt: skip
TEXTS = {
    "eot": {"pooling": "eot", "depth": 3},
    "last": {"pooling": "last", "depth": 3},
    "first": {"name": "bidirectional_transformer", "pooling": "first", "depth": 3},
    "eot without a mask": {"name": "bidirectional_transformer", "pooling": "eot", "depth": 3},
    "an id": {"pooling": "eot", "eot_id": 5, "depth": 3},
    "of one block": {"pooling": "eot", "depth": 1},
}
slow = pytest.mark.slow


def results(model, params, images, tokens):
    """Of a step's forward pass, and the gradients of all parameters."""

    def loss(params):
        output = model.apply({"params": params}, images, tokens, train=True)
        pairs = output.image_embeds @ output.text_embeds.T
        return jnp.sin(3 * pairs + jnp.arange(pairs.size).reshape(pairs.shape)).sum(), output

    (_, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return {"image": output.image_embeds, "text": output.text_embeds, "grads": grads}


def errors(text, execution, *, image=None):
    """The largest of each array, over the array's largest number."""
    image = {"pooling": "cls", "depth": 3} | (image or {})
    model, params = model_and_params(tiny_spec(image=image, text=text))
    images, tokens = inputs(tiny_spec(image=image, text=text), 4)
    other = model.under(dataclasses.replace(execution, pooled_only=True))
    needs = ("image_tokens", "text_tokens")
    given = jax.eval_shape(
        lambda: other.apply({"params": params}, images, tokens, train=True, with_tokens=needs)
    )
    assert given.image_tokens.shape[1] == given.text_tokens.shape[1] == 1
    plain, narrow = (results(each, params, images, tokens) for each in (model, other))

    def error(a, b):
        return np.abs(a - b).max() / (1e-6 + np.abs(a).max())

    return max(jax.tree.leaves(jax.tree.map(error, plain, narrow)))


@pytest.mark.parametrize(
    ("text", "remat", "unroll"),
    [
        ("eot", "names", 1),
        pytest.param("eot", "full", 2, marks=slow),
        *(pytest.param(text, "none", 1, marks=slow) for text in TEXTS),
        *(pytest.param("eot", remat, 0, marks=slow) for remat in REMAT),
    ],
)
def test_gradients_are_those_of_all_tokens(text, remat, unroll):
    assert errors(TEXTS[text], Execution(remat=remat, unroll=unroll)) < 1e-5


@slow
def test_so_they_are_behind_a_dense_layer_in_both_towers():
    text = {**BERT, "pooling": "pooler"}
    assert errors(text, Execution(), image={"pooling": "pooler"}) < 1e-5


def test_another_token_is_caught(monkeypatch):
    """Negative control: a mask that ends a token too early."""
    true = transformer.keys_up_to
    monkeypatch.setattr(transformer, "keys_up_to", lambda position, x: true(position, x) - 1)
    assert errors(TEXTS["eot"], Execution()) > 1e-2
