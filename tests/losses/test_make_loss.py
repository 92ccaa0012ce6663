"""Every layout on every mesh gives the float64 dense loss and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from clipjax.losses import LOSSES, choose_layout, make_loss
from clipjax.losses import layouts as layouts_module
from clipjax.losses.clip import SoftmaxPairs

NAMES = ("clip", "siglip")
TILED = ("gather", "grid", "ring")
MESHES = (
    None,
    (1,),
    (2,),
    (4,),
    (8,),
    (1, 1),
    (1, 2),
    (4, 1),
    (2, 4),
    (4, 2),
    (2, 2, 2),
    (1, 4, 2),
)

# Each entry buys a case the others do not have: one and two batch axes, an axis of size 1, a
# replicated axis, a prime number of devices, tiles that divide and tiles that do not.
QUICK = [
    ("gather", (4, 2), 5),
    ("grid", (8,), 4),
    ("ring", (8,), None),
    ("dense", (4, 2), None),
    ("grid", None, 7),
    ("grid", (3,), 16),
    ("grid", (4,), None),
    ("gather", (2,), None),
    ("grid", (4, 2), None),
    ("grid", (2, 1, 2), 5),
    ("grid", (2, 2, 2), 12),
    ("ring", (1, 4), 5),
]


@pytest.mark.parametrize(
    ("layout", "shape", "tile_size", "name"),
    [
        # The tiles know the loss, the layouts hardly: of most cases one loss is enough by default.
        pytest.param(*case, name, marks=() if i < 4 or i % 2 == j else pytest.mark.slow)
        for i, case in enumerate(QUICK)
        for j, name in enumerate(NAMES)
    ],
)
def test_equals_the_dense_loss(oracle, name, layout, shape, tile_size):
    mesh = None if shape is None else oracle.mesh(*shape)
    problem = oracle.problem()
    loss_fn = make_loss(name, mesh=mesh, layout=layout, tile_size=tile_size)
    oracle.assert_equal(oracle.run(loss_fn, problem, mesh), oracle.reference(name, *problem))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", TILED)
@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("tile_size", [None, 1, 5, 8, 64])
def test_equals_the_dense_loss_everywhere(oracle, name, layout, shape, tile_size):
    mesh = None if shape is None else oracle.mesh(*shape)
    for batch, embed, scale in ((8, 4, 5.0), (64, 24, 30.0)):
        problem = oracle.problem(batch, embed, scale=scale)
        loss_fn = make_loss(name, mesh=mesh, layout=layout, tile_size=tile_size)
        oracle.assert_equal(oracle.run(loss_fn, problem, mesh), oracle.reference(name, *problem))


@pytest.mark.parametrize(
    ("name", "layout"), [("clip", "grid"), ("clip", "ring"), ("siglip", "gather")]
)
def test_bfloat16(oracle, name, layout):
    mesh = oracle.mesh(2, 2)
    problem = oracle.problem(64, 32, dtype=jnp.bfloat16)
    found = oracle.run(make_loss(name, mesh=mesh, layout=layout, tile_size=8), problem, mesh)
    assert found[2][0].dtype == jnp.bfloat16
    assert found[0].dtype == found[2][2].dtype == jnp.float32
    oracle.assert_equal(found, oracle.reference(name, *problem), loss=2e-2, gradients=2e-2)


def _hard_cases():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(8, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    negated = unit.copy()
    negated[0] *= -1
    zeros = unit * (np.arange(8) % 2)[:, None]
    return {
        "cosine one": (unit, unit),
        "cosine minus one": (unit, negated),
        "duplicates": (np.repeat(unit[:2], 4, axis=0),) * 2,
        "all equal": (np.repeat(unit[:1], 8, axis=0),) * 2,
        "zero vectors": (zeros, unit),
        "all zero": (np.zeros_like(unit),) * 2,
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", TILED)
def test_hard_cases_with_one_example_a_device(oracle, name, layout):
    """Scale 100, one example a device: finite, and equal to float64 within its rounding."""
    mesh = oracle.mesh(4, 2)
    step = make_loss(name, mesh=mesh, layout=layout)
    step = jax.jit(jax.value_and_grad(step, (0, 1, 2, 3), has_aux=True))
    scale, bias = jnp.float32(np.log(100.0)), jnp.float32(-10.0)
    for case, (image, text) in _hard_cases().items():
        image, text = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
        (loss, metrics), gradients = step(image, text, scale, bias)
        for value in jax.tree.leaves((loss, metrics, gradients)):
            assert np.all(np.isfinite(value)), case
        expected = oracle.reference(name, image, text, scale, bias)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-6, err_msg=case)
        for a, b in zip(gradients, expected[2], strict=True):
            # Terms of size 100 cancel here: their float32 rounding is what is left.
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3, err_msg=case)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one(oracle, name):
    problem = oracle.problem(1, 8)
    loss, metrics, gradients = oracle.run(make_loss(name, layout="grid"), problem)
    expected = oracle.reference(name, *problem)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6, atol=1e-9)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((metrics, gradients)))


def test_bias_is_optional(oracle):
    image, text, scale, _ = oracle.problem()
    for name, layout in itertools.product(NAMES, ("dense", "grid")):
        step = jax.jit(jax.value_and_grad(make_loss(name, layout=layout), 2, has_aux=True))
        (loss, _), of_scale = step(image, text, scale)
        expected = oracle.reference(name, image, text, scale, 0.0)
        np.testing.assert_allclose(loss, expected[0], rtol=2e-6)
        np.testing.assert_allclose(of_scale, expected[2][2], rtol=2e-5)


def test_cotangent_and_metrics(oracle):
    """Three times the loss has three times the gradient; metrics have none."""
    problem = oracle.problem(16, 8)
    loss_fn = make_loss("clip", layout="grid", tile_size=4)

    def weighted(weight, *problem):
        loss, metrics = loss_fn(*problem)
        return weight * loss + metrics["positive_cosine"]

    gradient = jax.jit(jax.grad(weighted, 1))
    once, thrice = gradient(1.0, *problem), gradient(3.0, *problem)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5, atol=1e-7)


def test_under_an_ambient_mesh_with_inputs_laid_otherwise(oracle):
    """The step may run under `jax.set_mesh`; embeddings that arrive replicated are resharded."""
    mesh, problem = oracle.mesh(2, 2, 2), oracle.problem(16, 8)
    with jax.set_mesh(mesh):
        found = oracle.run(make_loss("clip", mesh=mesh, layout="grid"), problem)
    oracle.assert_equal(found, oracle.reference("clip", *problem))


class TestTheOracleSees:
    """Each break of the maths is caught by the very comparison the tests above make."""

    def check(self, oracle, layout, name="clip"):
        mesh, problem = oracle.mesh(2, 2), oracle.problem()
        found = oracle.run(make_loss(name, mesh=mesh, layout=layout), problem, mesh)
        with pytest.raises(AssertionError):
            oracle.assert_equal(found, oracle.reference(name, *problem))

    @pytest.mark.parametrize("layout", ["gather", "grid"])
    def test_a_dropped_merge(self, oracle, monkeypatch, layout):
        group = layouts_module.DeviceGroup
        monkeypatch.setattr(group, "psum_scatter", lambda self, x: self.own_slice(x))
        self.check(oracle, layout)

    def test_a_shifted_diagonal(self, oracle, monkeypatch):
        own_ids = layouts_module.Layout.own_ids
        monkeypatch.setattr(layouts_module.Grid, "own_ids", lambda self, n: own_ids(self, n) * 0)
        self.check(oracle, "grid", "siglip")

    def test_a_gradient_on_the_next_device(self, oracle, monkeypatch):
        step = layouts_module.BatchDevices.ring_shift

        def forget_the_last_hop(self, tree):
            is_gradient = getattr(tree, "ndim", 0) == 2
            return tree if is_gradient else step(self, tree)

        monkeypatch.setattr(layouts_module.BatchDevices, "ring_shift", forget_the_last_hop)
        self.check(oracle, "ring")

    def test_statistics_of_rows_only(self, oracle, monkeypatch):
        monkeypatch.setattr(
            SoftmaxPairs, "negative_weights", lambda self, s, row, _: 2 * jnp.exp(s - row[:, None])
        )
        self.check(oracle, "ring")


def test_auto_takes_the_layout_that_it_says():
    assert choose_layout(256, 512, 1) == "dense"
    assert choose_layout(16384, 512, 1) == "grid"
    assert choose_layout(32768, 512, 2) == "gather"
    assert choose_layout(32768, 512, 16) == "grid"
    assert choose_layout(2**20, 768, 256) == "grid"
    assert choose_layout(2**22, 768, 64) == "ring"


def test_auto_says_which_layout_it_took(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda message, *args: said.append(message % args))
    x = jax.ShapeDtypeStruct((2048, 8), jnp.float32)
    loss_fn = make_loss("clip")
    for _ in range(2):
        jax.eval_shape(loss_fn, x, x, jax.ShapeDtypeStruct((), jnp.float32))
    assert said == [
        "Loss clip: layout grid, 1 device(s), batch 2048, tiles up to 1024, products of float32."
    ]


def test_errors_say_what_is_allowed(oracle):
    with pytest.raises(ValueError, match=r"'clop' is unknown; allowed are clip, siglip"):
        make_loss("clop")
    with pytest.raises(ValueError, match=r"layout = 'star' is unknown; allowed are auto, dense"):
        make_loss("clip", layout="star")
    with pytest.raises(ValueError, match=r"dtype = 'float64' is unknown; allowed are auto, float"):
        make_loss("clip", dtype="float64")
    with pytest.raises(ValueError, match="at least 1"):
        make_loss("clip", tile_size=0)
    with pytest.raises(ValueError, match="dense, which has no tiles"):
        make_loss("clip", layout="dense", tile_size=128)
    image, text, scale, _ = oracle.problem(12, 8)
    with pytest.raises(ValueError, match="multiple of the 8 devices"):
        make_loss("clip", mesh=oracle.mesh(4, 2))(image, text, scale)


def test_a_loss_without_a_tile_rule_runs_dense(oracle, monkeypatch):
    image, text, scale, _ = oracle.problem(8, 4)
    monkeypatch.setitem(LOSSES, "mine", lambda image, text, scale, bias=None: jnp.mean(image))
    with pytest.raises(ValueError, match=r"dense, which has no tiles: set tile_size to None$"):
        make_loss("mine", tile_size=8)
    assert make_loss(LOSSES["mine"])(image, text, scale)[0] == jnp.mean(image)  # as a function
    loss, metrics = make_loss("mine")(image, text, scale)
    np.testing.assert_allclose(loss, jnp.mean(image))
    assert "logit_scale" in metrics
    with pytest.raises(ValueError, match="no row in PAIR_RULES"):
        make_loss("mine", layout="ring")
    with pytest.raises(ValueError, match=r"no row in PAIR_RULES.*leave dtype at \"auto\""):
        make_loss("mine", dtype="bfloat16")
