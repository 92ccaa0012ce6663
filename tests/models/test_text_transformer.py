import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled

from clipjax.models.text_transformer import BidirectionalTransformer, TextTransformer

TOKENS = jnp.array([[17, 3, 4, 19, 0, 0], [17, 5, 6, 7, 8, 19]])
END = (3, 5)


def encode(pooling="eot", cls=TextTransformer, **options):
    """(features of TOKENS, function of tokens)"""
    encoder = cls(20, 6, 8, 2, 2, 16, "gelu", pooling=pooling, **options)
    variables = filled(encoder, TOKENS)
    apply = jax.jit(lambda tokens: encoder.apply(variables, tokens))
    return apply(TOKENS), apply


@pytest.mark.parametrize("pooling", ["eot", "last", "mean"])
def test_pooling(pooling):
    features, _ = encode(pooling)
    for row, end in enumerate(END):
        tokens = features.tokens[row]
        wanted = {"eot": tokens[end], "last": tokens[-1], "mean": tokens[: end + 1].mean(0)}
        np.testing.assert_allclose(features.pooled[row], wanted[pooling], atol=1e-6)
    assert np.abs(features.tokens[0, 3] - features.tokens[0, -1]).max() > 1e-2


def test_the_first_position_is_pooled_where_it_sees_the_others():
    features, _ = encode("first", BidirectionalTransformer)
    np.testing.assert_array_equal(features.pooled, features.tokens[:, 0])
    with pytest.raises(ValueError, match="pooling"):
        encode("first")


def test_no_token_sees_a_later_one():
    before, apply = encode()
    after = apply(TOKENS.at[:, 4].set(11))
    np.testing.assert_array_equal(after.tokens[:, :4], before.tokens[:, :4])
    assert (np.abs(after.tokens - before.tokens)[:, 4:].max(axis=(0, 2)) > 1e-3).all()
    # So padding after the end of text is of no consequence.
    np.testing.assert_array_equal(after.pooled[0], before.pooled[0])


def test_without_the_mask_every_token_sees_every_other_and_the_padding():
    before, apply = encode("last", BidirectionalTransformer)
    after = apply(TOKENS.at[:, 4].set(11))
    assert (np.abs(after.tokens - before.tokens).max(axis=(0, 2)) > 1e-3).all()
    np.testing.assert_array_equal(before.pooled, before.tokens[:, -1])


@pytest.mark.parametrize("cls", [TextTransformer, BidirectionalTransformer])
def test_shorter_texts_use_the_first_rows_of_the_table(cls):
    short = jnp.array([[17, 3, 19, 0], [17, 5, 6, 19]])
    options = {"pooling": "last"}
    encoder = cls(20, 4, 8, 1, 2, 16, "gelu", table_length=6, **options)
    params = filled(encoder, short)["params"]
    table = params["position_embedding"]
    assert table.shape == (6, 8)

    @jax.jit
    def pooled(table):
        return encoder.apply({"params": {**params, "position_embedding": table}}, short).pooled

    own = cls(20, 4, 8, 1, 2, 16, "gelu", **options)

    @jax.jit
    def wanted(rows):
        return own.apply({"params": {**params, "position_embedding": rows}}, short).pooled

    np.testing.assert_array_equal(pooled(table), wanted(table[:4]))
    assert np.abs(pooled(table) - wanted(table[2:])).max() > 1e-3  # negative control
    direction = jax.random.normal(jax.random.key(3), (2, 8))
    grad = jax.jit(jax.grad(lambda table: (pooled(table) * direction).sum()))(table)
    assert (jnp.abs(grad[:4]).max(axis=1) > 1e-5).all() and not grad[4:].any()


def test_a_text_longer_than_the_table():
    with pytest.raises(ValueError, match="context_length = 8 exceeds the 6 rows"):
        TextTransformer(20, 8, 8, 1, 2, 16, "gelu", table_length=6)
