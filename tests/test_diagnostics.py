"""Diagnostics: their numbers against NumPy, a training that they leave as it is, the alarm."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from clipjax import diagnostics
from clipjax.diagnostics import CollapseAlarm, participation_ratio, uniformity


def unit(seed, rows=40, width=6):
    x = np.random.default_rng(seed).normal(size=(rows, width)) * np.arange(1, width + 1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_embeddings_numbers_are_those_of_numpy():
    x = unit(0)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    wanted = values.sum() ** 2 / (values**2).sum()
    np.testing.assert_allclose(participation_ratio(jnp.asarray(x)), wanted, rtol=1e-4)
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(x) for b in x[:i]]
    np.testing.assert_allclose(uniformity(jnp.asarray(x)), np.log(np.mean(pairs)), rtol=1e-4)
    with pytest.raises(AssertionError):  # negative control
        np.testing.assert_allclose(participation_ratio(jnp.asarray(unit(1))), wanted, rtol=1e-4)


def test_a_collapse_has_the_lowest_ratio_and_uniformity():
    same = jnp.asarray(np.repeat(unit(0)[:1], 40, 0))
    line = jnp.asarray(np.linspace(0, 1, 40)[:, None] * unit(0)[:1])
    assert float(participation_ratio(line)) == pytest.approx(1, abs=1e-3)
    assert float(uniformity(same)) == pytest.approx(0, abs=1e-5)
    assert float(participation_ratio(jnp.zeros((4, 3)))) == 0


def test_every_parameter_is_in_a_group():
    tree = {
        "image_encoder": {"patch_embedding": {"kernel": np.full((2, 2), 3.0)}, "mlp": np.ones(4)},
        "text_encoder": {"mlp": np.full(4, 2.0)},
        "text_projection": {"kernel": np.array([3.0, 4.0])},
        "logit_scale": np.array(5.0),
    }
    found = diagnostics.rms_by_group("param_rms", tree)
    wanted = {"embeddings": 3, "image": 1, "text": 2, "heads": np.sqrt(50 / 3)}
    assert found.keys() == {f"param_rms/{group}" for group in wanted}
    for group, value in wanted.items():
        np.testing.assert_allclose(found[f"param_rms/{group}"], value, rtol=1e-6)


def test_the_alarm_rings_once_for_a_loss_at_chance_and_for_few_directions(caplog):
    alarm = CollapseAlarm(steps=100)
    chance = float(np.log(32))
    with caplog.at_level(logging.WARNING, logger="absl"):
        rang = [alarm.see(step, {"loss": 1.005 * chance}, 32) for step in range(0, 201, 50)]
        assert rang == [False, False, True, True, True]
        assert not alarm.see(250, {"loss": 0.9 * chance}, 32)
        assert not alarm.see(300, {"loss": chance}, 32)  # its row begins again
        assert alarm.see(350, {"loss": 1.0, "participation_ratio/text": 1.5}, 32)
    assert [r.getMessage()[:8] for r in caplog.records if "collapsed" in r.getMessage()] == [
        "step 100",
        "step 350",
    ]
    assert not CollapseAlarm(steps=0).see(1, {"loss": chance}, None)
    assert not CollapseAlarm(steps=0).see(1, {"loss": chance}, 64)  # of another stage


@pytest.mark.slow
def test_a_run_with_diagnostics_trains_the_same_to_the_bit(tmp_path, command):
    flags = ["--config=tests/faults/tiny_run.py:steps=4,batch_size=8", "--config.log_every=2"]
    rows = {}
    for name in ("without", "with"):
        more = ["--config.diagnostics=true"] if name == "with" else []
        code, _, errors = command("train", *flags, *more, f"--workdir={tmp_path / name}")
        assert code == 0, errors
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line) for line in lines]
    digests = []
    for name in rows:
        manifest = json.loads((tmp_path / name / "checkpoints/4/manifest.json").read_text())
        digests.append({leaf["name"]: leaf["sha256"] for leaf in manifest["leaves"]})
    assert digests[0] == digests[1]
    assert [row["loss"] for row in rows["with"]] == [row["loss"] for row in rows["without"]]
    for row in rows["with"]:
        new = row.keys() - rows["without"][0].keys()
        assert {name.partition("/")[0] for name in new} == {
            *("grad_rms", "param_rms", "update_rms", "participation_ratio", "uniformity"),
            *("embedding_norm", "collapsed"),
        }
        assert {name for name in new if name.startswith("grad_rms/")} == {
            f"grad_rms/{group}" for group in ("embeddings", "heads", "image", "text")
        }
        assert all(np.isfinite(row[name]) for name in new)
        assert 0 < row["update_rms/heads"] < row["param_rms/heads"]
