"""Several averages of the trained parameters: their numbers, what is frozen, where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax import averages
from clipjax.config import default_config, validate
from clipjax.inference.opened import Opened
from clipjax.losses import make_loss
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step
from clipjax.trees import flatten_with_names

DECAYS = {"fast": 0.15, "slow": 0.9}  # the second ramps up within the first steps
STEPS = 4


def apply_fn(variables, images, tokens, **_):
    params = variables["params"]
    image = images.reshape(len(images), -1) @ params["image"]
    rows = [image, params["text"][tokens].mean(axis=1)]
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return image, text, params["logit_scale"], None


def frozen(name):
    return name == "text"


def batch(nan=False):
    images = jax.random.normal(jax.random.key(0), (8, 2, 2, 3))
    return {"image": images * jnp.nan if nan else images, "text": jnp.arange(8)[:, None]}


def trained(broken=None):
    """The states of a few steps; one of them may have a gradient of NaN."""
    draws = {"image": (12, 4), "text": (9, 4)}
    params = {name: jax.random.normal(jax.random.key(1), shape) for name, shape in draws.items()}
    params["logit_scale"] = jnp.array(2.0)
    tx = optax.sgd(0.3)
    state = create_train_state({"params": params}, tx, averages=DECAYS, frozen=frozen)
    step = make_train_step(apply_fn, make_loss("clip"), tx, averages=DECAYS, frozen=frozen)
    step = jax.jit(step)
    states = [state]
    for number in range(STEPS):
        states.append(step(states[-1], batch(nan=number == broken))[0])
    return states


def test_averages_are_their_formula_and_have_nothing_of_what_is_frozen():
    states = trained()
    names = {name for name, _ in flatten_with_names(states[-1].averages)}
    assert names == {f"{a}/{p}" for a in DECAYS for p in ("image", "logit_scale")}
    for name, decay in DECAYS.items():
        wanted = np.asarray(states[0].params["image"], np.float64)
        for step, state in enumerate(states[1:]):
            d = min(decay, (1 + step) / (10 + step))
            wanted = d * wanted + (1 - d) * np.asarray(state.params["image"], np.float64)
        found = states[-1].averages[name]["image"]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert np.abs(found - states[-1].params["image"]).max() > 1e-4
        whole = averages.whole(states[-1].params, states[-1].averages[name])
        assert whole["image"] is found
        assert whole["text"] is states[-1].params["text"]
    fast, slow = (states[-1].averages[name]["image"] for name in DECAYS)
    assert np.abs(fast - slow).max() > 1e-4


def test_a_step_that_is_left_out_changes_no_average():
    states = trained(broken=2)
    before, after = states[2].averages, states[3].averages
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(states[3].skipped) == 1
    assert np.abs(states[4].averages["fast"]["image"] - after["fast"]["image"]).max() > 0


def test_a_half_life_is_the_decay_after_which_a_half_is_left():
    assert averages.decay_of(1) == 0.5
    assert averages.decay_of(50) ** 50 == pytest.approx(0.5)


def written(*given):
    config = default_config()
    config.batch_size, config.data.source = 64, "synthetic:64"
    config.optimizer.averages = given
    return config


def test_averages_of_a_config():
    given = {"name": "a", "half_life": "640 examples"}, {"name": "b", "decay": 0.5}
    settings = validate(written(*given))
    assert settings.optimizer.averages == ({"name": "a", "half_life": 10}, given[1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"decay": 0.9}], r"averages\[0\]\.name is missing"),
        ([{"name": "a"}], r"averages\[0\] = .*either a decay or a half_life"),
        ([{"name": "a", "decay": 0.9, "half_life": 3}], "either a decay or a half_life"),
        (
            [{"name": "a", "decay": 1.0}],
            r"averages\[0\]\.decay = 1\.0: expected a finite",
        ),
        (
            [{"name": "a", "half_life": 0}],
            "half_life = 0: expected a whole number from 1",
        ),
        ([{"name": "a", "half_lif": 3}], r"half_lif is unknown.*Did you mean 'half_life'"),
        ([{"name": "A/b", "decay": 0.9}], r"name = 'A/b': expected a text of small letters"),
        ([{"name": "params", "decay": 0.9}], "'params' is taken"),
        ([{"name": "a", "decay": 0.9}, {"name": "a", "decay": 0.8}], r"\[1\]\.name = 'a' is taken"),
    ],
)
def test_what_is_wrong_with_an_average_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        validate(written(*given))


def test_what_is_kept_of_a_step_is_kept_for_each_of_its_averages():
    """Classifiers and features on disk are found by this name."""
    step = {"model": None, "step": 3, "config": {}, "contract": {}, "sha256": "ab"}
    names = {which: Opened(**step, which=which).weights_sha256 for which in (None, "fast", "slow")}
    assert names[None] == "ab" and len({*names.values()}) == 3
