"""Equal captions as positives: every layout gives the float64 loss, gradients and metrics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.losses import LOSSES, make_loss
from clipjax.losses import layouts as layouts_module
from clipjax.losses import tiles as tiles_module
from clipjax.losses.clip import SoftmaxPairs
from clipjax.losses.equal_rows import row_keys
from clipjax.losses.make_loss import POSITIVES
from clipjax.losses.siglip import SigmoidPairs
from clipjax.models.clip import CLIPOutput
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step

NAMES = ("clip", "siglip")
LAYOUTS = ("dense", "gather", "grid", "ring")


def make_captions(batch, num_classes, seed=0):
    """Token rows of random classes, as one per class, that differ in few positions."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.integers(0, 9, (1, 6)), num_classes, axis=0)
    rows[:, 3] = np.arange(num_classes)
    return jnp.asarray(rows[rng.integers(0, num_classes, batch)], jnp.int32)


def reference(name, image, text, logit_scale, logit_bias, captions):
    """Loss, metrics and gradients in float64 NumPy; gradients of the targets written out."""
    x, y = (np.asarray(a).astype(np.float64) for a in (image, text))
    rows = np.asarray(captions).reshape(len(x), -1)
    positive = (rows[:, None] == rows[None]).all(2)
    batch, scale = len(x), np.exp(np.float64(logit_scale))
    cosine = x @ y.T
    targets = positive / positive.sum(1, keepdims=True)
    if name == "clip":
        logits = scale * cosine

        def log_softmax(axis):
            shifted = logits - logits.max(axis, keepdims=True)
            return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))

        by_row, by_column = log_softmax(1), log_softmax(0)
        # positive is symmetric: the targets of the columns are those of the rows, transposed.
        loss = -(targets * by_row).sum() / (2 * batch) - (targets.T * by_column).sum() / (2 * batch)
        weights = (np.exp(by_row) - targets + np.exp(by_column) - targets.T) / (2 * batch)
        d_bias = 0.0
    else:
        logits = scale * cosine + np.float64(logit_bias)
        loss = np.logaddexp(0, np.where(positive, -logits, logits)).sum() / batch
        weights = (1 / (1 + np.exp(-logits)) - positive) / batch
        d_bias = weights.sum()
    gradients = (
        scale * weights @ y,
        scale * weights.T @ x,
        (weights * scale * cosine).sum(),
        d_bias,
    )
    best, worst = np.where(positive, cosine, -np.inf), np.where(positive, -np.inf, cosine)
    metrics = {
        "image_to_text_top1": np.mean(best.max(1) > worst.max(1)),
        "text_to_image_top1": np.mean(best.max(0) > worst.max(0)),
        "positive_cosine": cosine[positive].mean(),
        "negative_cosine": cosine[~positive].mean() if not positive.all() else 0.0,
        "logit_scale": scale,
        "positives_per_example": positive.sum() / batch,
    }
    return loss, metrics, gradients


def run(loss_fn, problem, captions, mesh=None):
    image, text, scale, bias = problem
    if mesh is not None:
        rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[:2]))
        image, text, captions = jax.device_put((image, text, captions), rows)
    step = jax.jit(jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True))
    (loss, metrics), gradients = step(image, text, scale, bias, captions)
    return loss, metrics, gradients


def losses(name, layout, mesh=None, tile_size=None, **options):
    return make_loss(
        name, mesh=mesh, layout=layout, tile_size=tile_size, positives="equal_captions", **options
    )


# One device and eight, two batch axes, tiles that divide and that do not; the loss by default.
CASES = [
    ("dense", None, None, "clip"),
    ("grid", None, 7, "clip"),
    ("gather", (4, 2), 4, "clip"),
    ("dense", (4, 2), None, "siglip"),
    ("grid", (4, 2), 5, "siglip"),
    ("ring", (4, 2), 4, "clip"),
]


@pytest.mark.parametrize(
    ("layout", "shape", "tile_size", "name"),
    [
        pytest.param(*case, name, marks=() if name == quick else pytest.mark.slow)
        for *case, quick in CASES
        for name in NAMES
    ],
)
def test_equals_float64(oracle, name, layout, shape, tile_size):
    mesh = None if shape is None else oracle.mesh(*shape)
    problem, captions = oracle.problem(48, 8), make_captions(48, 9)
    found = run(losses(name, layout, mesh, tile_size), problem, captions, mesh)
    oracle.assert_equal(found, reference(name, *problem, captions))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [None, (1,), (2,), (3,), (8,), (2, 2, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("tile_size", [None, 1, 5, 64])
def test_equals_float64_everywhere(oracle, name, layout, shape, tile_size):
    if layout == "dense" and tile_size is not None:
        pytest.skip("dense has no tiles")
    mesh = None if shape is None else oracle.mesh(*shape)
    for num_classes in (1, 2, 11, 1000):
        problem, captions = oracle.problem(24, 6, scale=30.0), make_captions(24, num_classes)
        found = run(losses(name, layout, mesh, tile_size), problem, captions, mesh)
        # One class: no negative is left, and terms of size 30 cancel to log(batch).
        oracle.assert_equal(found, reference(name, *problem, captions), loss=3e-6, gradients=3e-5)


@pytest.mark.parametrize("name", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_different_captions_give_the_loss_of_today(oracle, name):
    """To the bit where no two are equal, and so for class numbers in place of token ids."""
    problem = oracle.problem(16, 8)
    own = oracle.run(make_loss(name, layout="grid", tile_size=4), problem)
    numbers = jnp.arange(16, dtype=jnp.int32)
    found = run(losses(name, "grid", None, 4), problem, numbers)
    assert found[1].pop("positives_per_example") == 1.0
    assert own[0] == found[0]
    for a, b in zip(jax.tree.leaves(own[1:]), jax.tree.leaves(found[1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_one_caption_for_all(oracle, name):
    """Without a negative all is finite, and all is right."""
    problem = oracle.problem(8, 4)
    captions = jnp.zeros((8, 3), jnp.int32)
    expected = reference(name, *problem, captions)
    for layout in ("dense", "grid"):
        found = run(losses(name, layout), problem, captions)
        oracle.assert_equal(found, expected, loss=3e-6, gradients=3e-5)
        assert found[1]["image_to_text_top1"] == 1.0


@pytest.mark.slow
def test_bfloat16(oracle):
    mesh = oracle.mesh(4, 2)
    problem, captions = oracle.problem(32, 16, dtype=jnp.bfloat16), make_captions(32, 5)
    found = run(losses("clip", "ring", mesh, 4), problem, captions, mesh)
    assert found[2][0].dtype == jnp.bfloat16
    expected = reference("clip", *problem, captions)
    oracle.assert_equal(found, expected, loss=2e-2, gradients=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "grid"])
def test_explicit_axes(oracle, layout):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
    problem, captions = oracle.problem(16, 4), make_captions(16, 4)
    found = run(losses("clip", layout, mesh), problem, captions, mesh)
    oracle.assert_equal(found, reference("clip", *problem, captions))


@pytest.mark.parametrize("layout", ["dense", pytest.param("gather", marks=pytest.mark.slow)])
def test_slices_in_a_shard_map(oracle, layout):
    mesh = oracle.mesh(8)
    problem, captions = oracle.problem(16, 4), make_captions(16, 4)
    rows, all_of_it = PartitionSpec("data"), PartitionSpec()
    loss_fn = make_loss("siglip", axis_name="data", layout=layout, positives="equal_captions")
    specs = (rows, rows, all_of_it, all_of_it)
    step = jax.shard_map(
        jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True),
        mesh=mesh,
        in_specs=(*specs, rows),
        out_specs=((all_of_it, all_of_it), specs),
    )
    (loss, metrics), gradients = jax.jit(step)(*problem, captions)
    oracle.assert_equal((loss, metrics, gradients), reference("siglip", *problem, captions))

    same = jax.shard_map(loss_fn, mesh=mesh, in_specs=(*specs, all_of_it), out_specs=all_of_it)
    with pytest.raises(ValueError, match="captions are the same on all devices of the axis 'data'"):
        jax.jit(same)(*problem, captions[:2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "layout", ["ring", *(pytest.param(x, marks=pytest.mark.slow) for x in ("gather", "grid"))]
)
def test_no_buffer_is_as_large_as_the_logits(oracle, layout, name):
    """Neither logits nor the mask of positives: one tile of each."""
    mesh, batch = oracle.mesh(4), 1024
    rows = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.ShapeDtypeStruct((batch, 8), jnp.float32, sharding=rows)
    captions = jax.ShapeDtypeStruct((batch, 8), jnp.int32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    bias = scale if name == "siglip" else None
    step = jax.jit(jax.grad(losses(name, layout, mesh, 64), (0, 1), has_aux=True))
    memory = step.lower(x, x, scale, bias, captions).compile().memory_analysis()
    assert memory.temp_size_in_bytes < batch * batch // 4  # a byte each is the mask, four a logit


class TestKeys:
    def test_equal_rows_have_equal_keys_and_others_do_not(self):
        """All rows of three ids up to 20 in four positions, of which the last is padding."""
        rows = np.array(list(itertools.product(range(20), repeat=3)), np.int32)
        rows = np.pad(rows, ((0, 0), (0, 1)))
        first, second = (np.asarray(key) for key in row_keys(jnp.asarray(rows)))
        assert len({*zip(first, second, strict=True)}) == len(rows)
        again = row_keys(jnp.asarray(rows[::-1].copy()))
        np.testing.assert_array_equal(first[::-1], again[0])
        np.testing.assert_array_equal(second[::-1], again[1])

    def test_they_spread_over_all_bits(self):
        """Of 5,000 rows, as good as all have a first word of their own, and every bit is fair."""
        rows = np.random.default_rng(0).integers(0, 49408, (5000, 12)).astype(np.int32)
        for words in row_keys(jnp.asarray(rows)):
            words = np.asarray(words).view(np.uint32)
            assert len(np.unique(words)) > 5000 - 3  # 0.003 collisions are to be expected
            bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
            assert abs(bits.mean(0) - 0.5).max() < 0.04  # five standard deviations


class TestTheOracleSees:
    """Each break of the maths is caught by the very comparison the tests above make."""

    def check(self, oracle, name="clip", mesh=None):
        problem, captions = oracle.problem(16, 8), make_captions(16, 4)
        found = run(losses(name, "grid", mesh, 3), problem, captions, mesh)
        with pytest.raises(AssertionError):
            oracle.assert_equal(found, reference(name, *problem, captions))

    def test_positives_that_stay_negatives(self, oracle, monkeypatch):
        equal = tiles_module.equal_pairs
        monkeypatch.setattr(tiles_module, "equal_pairs", lambda a, b: equal(a, b) & False)
        self.check(oracle)

    def test_targets_that_are_not_spread(self, oracle, monkeypatch):
        monkeypatch.setattr(
            SoftmaxPairs,
            "other_positive_weights",
            lambda self, logits, *norms: self.negative_weights(logits, *norms[:2]) - 2,
        )
        self.check(oracle)

    def test_a_sigmoid_without_its_other_positives(self, oracle, monkeypatch):
        monkeypatch.setattr(
            SigmoidPairs,
            "other_positive_weights",
            lambda self, logits, row, column, share: self.negative_weights(logits, row, column),
        )
        self.check(oracle, "siglip")

    @pytest.mark.slow
    def test_counts_of_one_device(self, oracle, monkeypatch):
        group = layouts_module.DeviceGroup
        monkeypatch.setattr(group, "psum_scatter", lambda self, x: self.own_slice(x))
        self.check(oracle, mesh=oracle.mesh(2, 2))


def apply_fn(variables, images, tokens, **_):
    """Images times a matrix, texts as the mean of a table's rows."""
    params = variables["params"]
    image = images.reshape(len(images), -1) @ params["image"]
    rows = image, params["text"][tokens].mean(axis=1)
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return CLIPOutput(image, text, params["logit_scale"], params["logit_bias"])


def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "image": jax.random.normal(keys[0], (12, 6)),
        "text": jax.random.normal(keys[1], (9, 6)),
        "logit_scale": jnp.array(2.0),
        "logit_bias": jnp.array(-1.0),
    }


@pytest.mark.parametrize("name", ["siglip", pytest.param("clip", marks=pytest.mark.slow)])
def test_a_train_step_hands_the_token_ids_on_with_gradient_caching_too(name):
    params, tx = parameters(), optax.sgd(1.0)
    batch = {
        "image": jax.random.normal(jax.random.key(1), (12, 2, 2, 3)),
        "text": make_captions(12, 4),
    }

    def step(positives, num_micro):
        loss_fn = make_loss(name, layout="dense", positives=positives)
        step = make_train_step(
            apply_fn, loss_fn, tx, num_micro_batches=num_micro, max_logit_scale=None
        )
        state, metrics = jax.jit(step)(create_train_state({"params": params}, tx), batch)
        return jax.tree.map(jnp.subtract, params, state.params), metrics

    gradient, metrics = step("equal_captions", 1)
    cached, cached_metrics = step("equal_captions", 3)
    embeds = apply_fn({"params": params}, batch["image"], batch["text"])
    expected = reference(name, *embeds, batch["text"])
    np.testing.assert_allclose(metrics["loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient["logit_scale"], expected[2][2], rtol=1e-4)
    assert metrics["positives_per_example"] == expected[1]["positives_per_example"] > 2
    for key in metrics:
        np.testing.assert_allclose(cached_metrics[key], metrics[key], rtol=1e-5, err_msg=key)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(cached), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    other, other_metrics = step("own", 1)
    # The texts are a function of their ids: softmax then spreads what it has in one place already.
    difference = abs(gradient["text"] - other["text"]).max()
    if name == "clip":
        np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-6)
        assert difference < 1e-6
    else:
        assert difference > 1e-2


@pytest.mark.parametrize("positives", POSITIVES)
def test_a_sigmoid_learns_what_its_own_pairs_alone_forbid(positives):
    """Of n equal captions, own pairs alone ask a probability of 1/n, which leaves their entropy."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 4)
    image = np.eye(12)[label] + 0.05 * rng.normal(size=(12, 12))
    batch = {
        "image": jnp.asarray(image.reshape(12, 2, 2, 3), jnp.float32),
        "text": jnp.asarray(label[:, None], jnp.int32),
    }
    params, tx = parameters(), optax.adam(0.1)
    loss_fn = make_loss("siglip", layout="dense", positives=positives)
    step = jax.jit(make_train_step(apply_fn, loss_fn, tx, max_logit_scale=None))
    state = create_train_state({"params": params}, tx)
    for _ in range(150):
        state, metrics = step(state, batch)
    floor = 4 * (np.log(4) / 4 + 3 / 4 * np.log(4 / 3))  # nats an example
    if positives == "own":
        assert metrics["loss"] > floor and metrics["image_to_text_top1"] < 1
    else:
        assert metrics["loss"] < floor / 20 and metrics["image_to_text_top1"] == 1


def test_errors_say_what_is_allowed(oracle):
    with pytest.raises(ValueError, match="'equal' is unknown; allowed are own, equal_captions"):
        make_loss("clip", positives="equal")
    mine = lambda image, text, scale, bias=None: jnp.mean(image)  # noqa: E731
    with pytest.raises(ValueError, match=r"no row in PAIR_RULES.* set positives to \"own\", or"):
        make_loss(mine, positives="equal_captions")
    problem = oracle.problem(8, 4)
    loss_fn = losses("clip", "dense")
    with pytest.raises(ValueError, match="captions are missing"):
        loss_fn(*problem)
    for wrong in (jnp.zeros((7, 3), jnp.int32), jnp.zeros((8, 3)), jnp.zeros((), jnp.int32)):
        with pytest.raises(ValueError, match=r"must be token ids \[batch, length\]"):
            loss_fn(*problem, wrong)
    with pytest.raises(ValueError, match='was made with positives = "own"'):
        make_loss("clip")(*problem, jnp.zeros(8, jnp.int32))
    assert set(LOSSES) == set(NAMES)  # each of which the tests above try
