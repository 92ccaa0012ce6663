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
