import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.layers.execution import Execution
from clipjax.layers.transformer import Attention, BlockConfig, Transformer
from clipjax.models.layers_layout import stack_layers, unstack_layers
from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, walk

WIDTH, HEADS, DEPTH = 8, 2, 2
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, WIDTH), np.float32))
CAUSAL = np.tril(np.ones((5, 5), bool))


def blocks(**options):
    ways = {field.name for field in dataclasses.fields(Execution)} & options.keys()
    execution = Execution(**{way: options.pop(way) for way in ways})
    return BlockConfig(DEPTH, HEADS, 16, "gelu", 1e-5, execution=execution, **options)


def make(**options):
    return Transformer(blocks(**{"causal": True, **options}))


@pytest.fixture(scope="module")
def params():
    variables = jax.jit(lambda k: make(init_name="openai_text").init(k, X))(jax.random.key(0))
    return nn.unbox(variables)["params"]


def run(params, train=False, **options):
    """Values, gradient in the scanned layout, and hidden states."""
    apart = options.get("apart", False)

    def loss(params):
        out, hidden = make(**options).apply(
            {"params": unstack_layers({"t": params})["t"] if apart else params},
            X,
            keep_hidden=True,
            train=train,
            rngs={"dropout": jax.random.key(2)},
        )
        return (out**2).sum(), (out, hidden)

    gradient, (out, hidden) = jax.jit(jax.grad(loss, has_aux=True))(params)
    return out, gradient, hidden


def assert_close(found, wanted, atol):
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, atol=atol), found, wanted)


def softmax_dtypes(function, *inputs):
    """Dtypes that exponentials and sums of a traced function run in, calls opened."""
    found = {"exp": set(), "reduce_sum": set()}

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in found:
                found[equation.primitive.name].add(str(equation.invars[0].aval.dtype))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*inputs).jaxpr)
    return found


def test_softmax_runs_in_float32_when_the_tower_computes_in_bfloat16():
    x = X.astype(jnp.bfloat16)
    for causal in (False, True):
        config = blocks(init_name="openai_text", dtype=jnp.bfloat16, causal=causal)
        attention = Attention(config)
        params = nn.unbox(jax.jit(attention.init)(jax.random.key(0), x))
        dtypes = softmax_dtypes(lambda p, a=attention: a.apply(p, x), params)
        assert dtypes == {"exp": {"float32"}, "reduce_sum": {"float32"}}
    assert attention.apply(params, x).dtype == jnp.bfloat16

    # Negative control: exponentials of bfloat16 are seen, also inside of a call.
    dtypes = softmax_dtypes(jax.jit(lambda x: jnp.exp(x) / jnp.exp(x).sum()), x)
    assert "bfloat16" in dtypes["exp"]


@pytest.fixture(scope="module")
def plain(params):
    return run(params)


def test_a_stack_recomputes_what_its_remat_policy_says(params):
    def recomputed(remat):
        def loss(params):
            return (make(remat=remat).apply({"params": params}, X)[0] ** 2).sum()

        text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
        return count_flops(walk(parse(text))).by_part["recomputed"]

    none, dots, full = map(recomputed, ("none", "dots", "full"))
    assert none == 0
    scores = 2 * X.shape[0] * X.shape[1] ** 2 * WIDTH  # of one product of two activations
    assert dots == pytest.approx(DEPTH * 2 * scores, abs=DEPTH * scores)
    # All products of a block but the last, which is the MLP's second.
    tokens = X.shape[0] * X.shape[1]
    products = 2 * tokens * (4 * WIDTH**2 + WIDTH * 16) + 2 * scores
    assert full == pytest.approx(DEPTH * products, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"apart": True},
        {"unroll": 0},
        {"platform": "gpu", "unroll": 0},
        {"remat": "dots"},
        {"apart": True, "remat": "full"},
        {"platform": "gpu", "remat": "names"},
        {"unroll": 0, "remat": "attention"},
    ],
    ids=str,
)
def test_layouts_and_rematerialisation_change_no_value(params, plain, options):
    assert_close(run(params, **options), plain, 2e-5)


@pytest.mark.slow
def test_remat_draws_the_same_noise(params, plain):
    wanted = run(params, train=True, dropout=0.5)
    assert np.abs(wanted[0] - plain[0]).max() > 0.1
    assert_close(run(params, train=True, dropout=0.5, remat="full"), wanted, 2e-5)


def test_hidden_states(plain):
    out, _, hidden = plain
    assert hidden.shape == (DEPTH, *X.shape)
    np.testing.assert_array_equal(hidden[-1], out)
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-2


def test_stacking_is_undone_by_unstacking(params):
    tree = {"text": {"transformer": params}}
    apart = unstack_layers(tree)
    assert set(apart["text"]["transformer"]) == {f"block_{i}" for i in range(DEPTH)}
    again = stack_layers(apart)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_attention_is_the_formula_with_one_fused_kernel():
    module = Attention(blocks(causal=True))
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), X))["params"]
    assert params["qkv_kernel"].shape == (WIDTH, 3, HEADS, WIDTH // HEADS)
    params = jax.tree.map(lambda p: p + 0.1, params)
    q, k, v = (
        np.einsum("blw,whd->bhld", X, params["qkv_kernel"][:, i]) + params["qkv_bias"][i][:, None]
        for i in range(3)
    )
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / (WIDTH // HEADS) ** 0.5
    scores = np.where(CAUSAL, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bhkd->bqhd", weights, v)
    wanted = np.einsum("bqhd,hdw->bqw", mixed, params["out_kernel"]) + params["out_bias"]
    np.testing.assert_allclose(module.apply({"params": params}, X), wanted, atol=1e-5)
    assert np.abs(Attention(blocks()).apply({"params": params}, X) - wanted).max() > 1e-3


def test_unknown_remat():
    with pytest.raises(
        ValueError, match="remat 'some' is unknown; allowed are none, names, dots, attention, full"
    ):
        make(remat="some")
