"""The optimizers by name against their published updates in NumPy; layers of a stack by themselves.

Each oracle takes one tensor of one layer and knows nothing of stacks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.models.layers_layout import laid_out_like, unstack_layers
from clipjax.optim import make_optimizer
from clipjax.optim.muon import matrix_axes, orthogonal
from clipjax.plan.flops import count_flops
from clipjax.plan.hlo import parse, walk
from clipjax.trees import count_bytes, count_parameters, flatten_with_names

# As many layers as optax's adafactor would factor over; qkv and out have 2 heads of 16.
LAYERS, WIDTH, MLP = 33, 32, 40
PICKED = [0, 7, 32]
SHAPES = {
    "tower": {
        "blocks": {
            "attention": {
                "qkv_kernel": (LAYERS, WIDTH, 3, 2, 16),
                "out_kernel": (LAYERS, 2, 16, WIDTH),
            },
            "ln": {"scale": (LAYERS, WIDTH)},
            "mlp": {"kernel": (LAYERS, WIDTH, MLP)},
        },
        "token_embedding": (48, WIDTH),
    },
    "projection": {"kernel": (WIDTH, 24)},
    "logit_scale": (),
}
STEPS = 4
OPTIMIZERS = ("adamw", "lion", "muon", "lamb", "adafactor", "stableadamw")
SETTINGS = {"b1": 0.9, "b2": 0.97, "eps": 1e-6, "weight_decay": 0.3}
RATE = 0.01


def draw(seed):
    """A tree of `SHAPES`; layers, and parts of qkv, differ in size by orders of magnitude."""
    rng = np.random.default_rng(seed)

    def one(shape):
        x = rng.normal(size=shape)
        if shape and shape[0] == LAYERS:
            x *= 10.0 ** rng.uniform(-2, 2, size=(LAYERS, *[1] * (len(shape) - 1)))
        if len(shape) == 5:
            x *= np.array([1.0, 10.0, 0.1])[:, None, None]
        return x.astype(np.float32)

    return jax.tree.map(one, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def run(name, params, gradients, **options):
    """The parameters after a step for each gradient, and the optimizer's last state."""
    schedule = optax.constant_schedule(RATE)
    tx = make_optimizer(params, schedule=schedule, name=name, **SETTINGS, **options)
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads, number):
        updates, state = tx.update(grads, state, params, step=number)
        return optax.apply_updates(params, updates), state

    for number, grads in enumerate(gradients):
        params, state = step(params, state, grads, number)
    return params, state


PARAMS = draw(0)
GRADIENTS = [draw(seed) for seed in range(1, STEPS + 1)]


@functools.cache
def run_stacked(name, rms=0.2):
    return run(name, PARAMS, GRADIENTS, rms=rms)


def picked(tree):
    """The tree with some layers of its stacks alone; a layer's numbers depend on no other."""

    def pick(leaf):
        leaf = np.asarray(leaf)
        return leaf[PICKED] if leaf.shape[:1] == (LAYERS,) else leaf

    return jax.tree.map(pick, tree)


def leaves_apart(tree):
    """Some layers, each tensor by its name."""
    return dict(flatten_with_names(unstack_layers(picked(tree))))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stack_is_updated_as_its_layers_apart_are_and_keeps_their_state(name):
    params, state = run_stacked(name)
    few = picked(PARAMS)
    gradients = [unstack_layers(picked(g)) for g in GRADIENTS]
    apart, state_apart = run(name, unstack_layers(few), gradients)
    together, state = laid_out_like(state_apart, few), picked(state)
    assert jax.tree.structure(together) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(state), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        slack = 1e-6 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=slack)
    found = leaves_apart(params)
    for key, value in flatten_with_names(apart):
        np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=2e-7, err_msg=key)


# --- the oracles: (parameter, gradients) of one tensor -> the parameter after them --------


def adam_directions(gradients, b1, b2, eps):
    m = v = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def adamw(name, x, gradients, decays, *, b1, b2, eps, weight_decay):
    for direction in adam_directions(gradients, b1, b2, eps):
        x = x - RATE * (direction + decays * weight_decay * x)
    return x


def stable_adamw(name, x, gradients, decays, *, b1, b2, eps, weight_decay):
    v = 0.0
    for t, direction in enumerate(adam_directions(gradients, b1, b2, eps), 1):
        g = gradients[t - 1]
        v = b2 * v + (1 - b2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(v / (1 - b2**t), eps**2)))
        x = x - RATE / max(1, rms) * (direction + decays * weight_decay * x)
    return x


def lion(name, x, gradients, decays, *, b1, b2, eps, weight_decay):
    m = np.zeros_like(x)
    for g in gradients:
        x = x - RATE * (np.sign(b1 * m + (1 - b1) * g) + decays * weight_decay * x)
        m = b2 * m + (1 - b2) * g
    return x


def lamb(name, x, gradients, decays, *, b1, b2, eps, weight_decay):
    for direction in adam_directions(gradients, b1, b2, eps):
        update = direction + decays * weight_decay * x
        ratio = np.linalg.norm(x) / np.linalg.norm(update) if decays else 1.0
        x = x - RATE * ratio * update
    return x


def newton_schulz(g):
    """Jordan's: five steps of a quintic on the normalised matrix, the short side first."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def as_matrices(name, x):
    """The matrices of one layer's kernel as a dict, and how to put them together."""
    if name.endswith("qkv_kernel"):
        parts = {part: x[:, part].reshape(WIDTH, -1) for part in range(3)}
        return parts, lambda done: np.stack([done[p].reshape(WIDTH, 2, 16) for p in range(3)], 1)
    if name.endswith("out_kernel"):
        return {0: x.reshape(-1, WIDTH)}, lambda done: done[0].reshape(2, 16, WIDTH)
    return {0: x}, lambda done: done[0]


def muon(name, x, gradients, decays, *, b1, b2, eps, weight_decay, rms=0.2):
    if not name.endswith("kernel"):
        return adamw(name, x, gradients, decays, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    buffer = np.zeros_like(x)
    for g in gradients:
        buffer = 0.95 * buffer + 0.05 * g
        matrices, together = as_matrices(name, 0.95 * buffer + 0.05 * g)
        done = {}
        for key, m in matrices.items():
            scale = rms * np.sqrt(max(m.shape)) if rms else np.sqrt(max(1, m.shape[1] / m.shape[0]))
            done[key] = scale * newton_schulz(m)
        x = x - RATE * (together(done) + decays * weight_decay * x)
    return x


def adafactor(name, x, gradients, decays, *, b1, b2, eps, weight_decay):
    """Rows and columns of the two largest dimensions where both are from 32."""
    rows = cols = v = m = 0.0
    order = np.argsort(x.shape)
    factored = x.ndim > 1 and x.shape[order[-2]] >= 32
    for t, g in enumerate(gradients, 1):
        beta = min(b2, 1 - t**-0.8)
        squares = g**2 + 1e-30
        if factored:
            small, large = order[-2], order[-1]
            rows = beta * rows + (1 - beta) * squares.mean(axis=large, keepdims=True)
            cols = beta * cols + (1 - beta) * squares.mean(axis=small, keepdims=True)
            estimate = rows * cols / rows.mean(axis=small, keepdims=True)
        else:
            estimate = v = beta * v + (1 - beta) * squares
        m = b1 * m + (1 - b1) * g / np.sqrt(estimate)
        x = x - RATE * (m + decays * weight_decay * x)
    return x


ORACLES = {
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
    "lamb": lamb,
    "adafactor": adafactor,
    "stableadamw": stable_adamw,
}


def oracle_distance(name, oracle, **options):
    """The largest relative error over all tensors, of what the steps changed."""
    found, start = leaves_apart(run_stacked(name, **options)[0]), leaves_apart(PARAMS)
    gradients = [leaves_apart(g) for g in GRADIENTS]
    worst = 0.0
    for key, x in start.items():
        decays = float(not key.endswith(("scale", "bias")))
        tensors = [g[key].astype(np.float64) for g in gradients]
        wanted = oracle(key, x.astype(np.float64), tensors, decays, **SETTINGS)
        # float32 rounds the parameter; what is compared is the sum of the updates.
        slack = np.abs(x).max() * 2e-7 * STEPS
        error = np.abs(found[key] - wanted).max() - slack
        worst = max(worst, error / np.abs(wanted - x).max())
    return worst


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_the_published_one(name):
    assert oracle_distance(name, ORACLES[name]) < 2e-4


def test_muon_scales_by_the_shape_where_asked():
    options = {"rms": None}
    assert oracle_distance("muon", lambda *a, **k: muon(*a, **k, rms=None), **options) < 2e-4
    assert oracle_distance("muon", muon, **options) > 0.05


@pytest.mark.parametrize(
    ("name", "other"),
    [("adamw", "stableadamw"), ("lion", "adamw"), ("muon", "adamw"), ("lamb", "adamw"),
     ("adafactor", "adamw"), ("stableadamw", "adamw")],
)  # fmt: skip
def test_the_oracles_tell_the_rules_apart(name, other):
    assert oracle_distance(name, ORACLES[other]) > 0.01


def test_a_matrix_becomes_orthogonal():
    x = jax.random.normal(jax.random.key(0), (3, 24, 2, 16))
    found = orthogonal(x, (1,), (2, 3)).reshape(3, 24, 32)
    values = np.linalg.svd(np.asarray(found), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3
    # Each of the three by itself: another size of one changes the others' numbers nowhere.
    scaled = orthogonal(x * jnp.array([1.0, 100.0, 0.01])[:, None, None, None], (1,), (2, 3))
    np.testing.assert_allclose(scaled.reshape(found.shape), found, atol=1e-4)


def test_a_plan_counts_the_products_of_muon_apart():
    lowered = jax.jit(lambda x: orthogonal(x, (1,), (2,))).lower(jnp.ones((3, 24, 32)))
    flops = count_flops(walk(parse(lowered.compile().as_text())))
    once = 2 * 24 * 24 * 32 + 2 * 24**3 + 2 * 24 * 24 * 32
    assert flops.by_part["optimizer"] == flops.total == 5 * 3 * once


@pytest.mark.parametrize(
    ("name", "ndim", "axes"),
    [
        ("image_encoder/transformer/blocks/attention/qkv_kernel", 5, ((1,), (3, 4))),
        ("image_encoder/transformer/block_3/attention/qkv_kernel", 4, ((0,), (2, 3))),
        ("image_encoder/attention_pool/attention/q_kernel", 3, ((0,), (1, 2))),
        ("text_encoder/transformer/blocks/attention/out_kernel", 4, ((1, 2), (3,))),
        ("text_encoder/transformer/blocks/mlp/fc/kernel", 3, ((1,), (2,))),
        ("text_projection/kernel", 2, ((0,), (1,))),
        ("image_encoder/patch_kernel", 4, None),
        ("image_encoder/conv1/kernel", 4, None),
        ("text_encoder/token_embedding", 2, None),
        ("text_encoder/transformer/blocks/ln_1/scale", 2, None),
        ("logit_scale", 0, None),
    ],
)
def test_which_parameters_are_matrices(name, ndim, axes):
    assert matrix_axes(name, ndim) == axes


def state_bytes(name, **options):
    tx = make_optimizer(
        PARAMS, schedule=optax.constant_schedule(RATE), name=name, **SETTINGS, **options
    )
    return count_bytes(jax.eval_shape(tx.init, PARAMS))


def test_the_state_of_every_rule_has_the_size_that_is_documented():
    """Bytes beside the parameters: moments of 4 bytes, the first of 2 in bfloat16."""
    total, small = count_parameters(PARAMS), 64
    matrices = sum(
        leaf.size
        for name, leaf in flatten_with_names(PARAMS)
        if matrix_axes(name, leaf.ndim) is not None
    )
    moments = {"adamw": 2, "lion": 1, "lamb": 2, "stableadamw": 2}
    wanted = {name: 4 * number * total for name, number in moments.items()}
    wanted["muon"] = 4 * (2 * total - matrices)
    for name, size in wanted.items():
        assert 0 <= state_bytes(name) - size <= small
        assert 0 <= state_bytes(name, mu_dtype="bfloat16") - (size - 2 * total) <= small
    # Rows and columns of tensors of 32 and more; q, k, v and out have rows of 16 and none.
    factored = LAYERS * (WIDTH + MLP) + (48 + WIDTH)
    whole = total - LAYERS * WIDTH * MLP - 48 * WIDTH
    found = state_bytes("adafactor") - 4 * (total + factored + whole)
    assert 0 <= found <= 4 * 4 * LAYERS * 8, "but for the empty places of what is not factored"
    assert state_bytes("adafactor") - state_bytes("adafactor", mu_dtype="bfloat16") == 2 * total


def test_frozen_parameters_hold_no_state_under_any_rule():
    for name in OPTIMIZERS:
        frozen, whole = state_bytes(name, freeze=("^tower/blocks/",)), state_bytes(name)
        assert frozen < 0.1 * whole
