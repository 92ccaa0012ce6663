"""config.loss.positives: a run on folders of classes, whose captions are equal within a class."""

import functools
import json

import jax
import numpy as np
import pytest
from config_files import shipped
from PIL import Image

from clipjax.experiment import build_experiment, build_program, resolve
from clipjax.train import train

BIAS = -10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures of a disc, six of noise."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name, count in (("a red disc", 2), ("grey noise", 6)):
        (root / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def small_config(folder, **changes):
    config = shipped("smoke", "steps=2,batch_size=8")
    config.data.source = f"folder:{folder}"
    config.model.image.depth = config.model.text.depth = 1
    config.model.text.vocab_size = 49408
    config.model.logit_scale, config.model.logit_bias = {"init": 10.0, "max": None}, BIAS
    config.loss.name, config.loss.layout, config.loss.tile_size = "siglip", "ring", 3
    config.tensorboard = config.report = False
    config.log_every, config.mesh.data = 1, 2
    del config.evals.zero_shot
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def first_step(config, workdir):
    """The first row of metrics of a run on two devices, and the token ids that it was of."""
    with pytest.MonkeyPatch.context() as patch:
        two = functools.partial(build_program, devices=jax.devices()[:2])
        patch.setattr("clipjax.experiment.run.build_program", two)
        experiment = build_experiment(resolve(config), workdir)
    _, batch = next(iter(experiment.loader.iterate(0)))
    train(experiment)
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0]), batch["text"]


@pytest.mark.slow
def test_a_run_takes_pictures_of_a_class_as_matches_of_its_caption(folder, tmp_path):
    """Cached and sharded; the two losses differ by the pairs that changed their sign."""
    own, _ = first_step(small_config(folder), tmp_path / "own")
    changes = {"loss.positives": "equal_captions", "micro_batch_size": 4}
    found, tokens = first_step(small_config(folder, **changes), tmp_path / "equal")
    positive = (tokens[:, None] == tokens[None]).all(2)
    assert found["positives_per_example"] == positive.sum() / 8 == (4 + 36) / 8
    assert "positives_per_example" not in own
    # softplus(-z) - softplus(z) = -z, for all positives but the own pairs.
    scale, more = own["logit_scale"], found["positives_per_example"]
    cosines = more * found["positive_cosine"] - own["positive_cosine"]
    expected = -(scale * cosines + BIAS * (more - 1))
    assert expected > 10
    np.testing.assert_allclose(found["loss"] - own["loss"], expected, rtol=1e-4)


def test_what_does_not_take_captions_is_refused(folder):
    """An objective of one's own, and a loss that has no rule for pairs; and an unknown name."""
    changes = {"loss.positives": "equal_captions"}
    config = small_config(folder, **changes)
    config.objective = {"name": "clipjax.losses.objectives:PairObjective"}
    resolve(config)
    config.objective = {"name": f"{__name__}:Other"}
    with pytest.raises(ValueError, match=r"config\.loss\.positives = 'equal_captions' and config"):
        resolve(config)
    config = small_config(folder, **changes)
    config.loss.name, config.loss.layout = "clipjax.losses.clip:clip_loss", "dense"
    config.loss.tile_size = None
    with pytest.raises(ValueError, match=r"config\.loss: positives = 'equal_captions', but the lo"):
        resolve(config)
    with pytest.raises(ValueError, match=r"config\.loss\.positives.*'all'.*own.*equal_captions"):
        resolve(small_config(folder, **{"loss.positives": "all"}))


class Other:
    needs = ()

    def __call__(self, outputs, batch, rng):
        raise NotImplementedError
