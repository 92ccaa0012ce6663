"""What a block leaves its backward pass, and which products are computed again: traced."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from clipjax.layers.execution import Execution
from clipjax.layers.remat import REMAT
from clipjax.layers.transformer import BlockConfig, Transformer
from clipjax.plan import gpu
from clipjax.plan.chips import CHIPS

BATCH, LENGTH, WIDTH, HEADS, MLP, DEPTH = 3, 40, 128, 2, 640, 2
TOKENS = BATCH * LENGTH
X = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.bfloat16)
# Attention by the plain form, by the kernel for TPUs and by that for GPUs.
PLATFORMS = {"xla": "cpu", "pallas": "tpu", "cudnn": "gpu"}


@pytest.fixture(autouse=True)
def a_gpu_to_trace_for():
    with gpu.answering_for(CHIPS["h100"]):
        yield


def stack(remat, attention, depth=DEPTH):
    execution = Execution(platform=PLATFORMS[attention], attention=attention, remat=remat)
    config = BlockConfig(depth, HEADS, MLP, "gelu", 1e-5, dtype=jnp.bfloat16, execution=execution)
    tower = Transformer(config)
    params = nn.unbox(jax.eval_shape(tower.init, jax.random.key(0), X))
    return lambda params, x: tower.apply(params, x)[0].astype(jnp.float32).sum(), params


def products(jaxpr):
    """FLOPs of a traced program: its products, and those that its kernels say or are known for."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = list(jaxprs_in_params(params))
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2 * size * math.prod(left[axis] for axis in contracted)
        elif name == "pallas_call":
            total, inner = total + params["cost_estimate"].flops, []
        elif name.startswith("dot_product_attention_"):
            scores = 2 * TOKENS * LENGTH * WIDTH
            total, inner = total + (2 if "_fwd_" in name else 5) * scores, []
        elif name == "cond":  # the same for other platforms
            inner = inner[:1]
        times = params["length"] if name == "scan" else 1
        total += times * sum(map(products, inner))
    return total


@functools.cache
def step_flops(remat, attention):
    loss, params = stack(remat, attention)
    return products(jax.make_jaxpr(jax.grad(loss))(params, X).jaxpr)


@pytest.mark.parametrize("attention", PLATFORMS)
@pytest.mark.parametrize("remat", REMAT)
def test_a_row_computes_again_what_it_says(remat, attention):
    row = REMAT[remat]
    widths, mlps, scores = row.recomputed if attention == "xla" else row.lean_recomputed
    wanted = DEPTH * TOKENS * (widths * WIDTH**2 + mlps * WIDTH * MLP + scores * LENGTH * WIDTH)
    assert step_flops(remat, attention) - step_flops("none", attention) == wanted


# A CPU compiles less for `none` than is traced.
KEEPING = [(r, a) for r in REMAT for a in PLATFORMS if (r, a) != ("none", "xla")]


@pytest.mark.parametrize(("remat", "attention"), KEEPING)
def test_a_row_keeps_what_it_says(remat, attention):
    row = REMAT[remat]
    widths, mlps = row.kept if attention == "xla" else row.lean_kept
    loss, params = stack(remat, attention)
    backward = jax.eval_shape(lambda *args: jax.vjp(loss, *args)[1], params, X)
    arrays = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[:2] == (DEPTH, BATCH)]
    sizes = [leaf.size for leaf in arrays if leaf.dtype == X.dtype]  # not a kernel's statistics
    assert sum(sizes) == DEPTH * TOKENS * (widths * WIDTH + mlps * MLP)
