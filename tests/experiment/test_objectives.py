"""config.objective: an objective out of the tree, with parameters and a frozen teacher."""

import functools
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from config_files import shipped
from extending_page import CAPTIONER
from flax import linen as nn

from clipjax.checkpoint import choose_step, load_model_state, load_params
from clipjax.experiment import build_experiment, build_program, resolve
from clipjax.faults import InjectedFault
from clipjax.inference import Model
from clipjax.interop.clipjax_checkpoint import read, write
from clipjax.interop.weights import NO_HINTS
from clipjax.train import train
from clipjax.train_step import make_train_step
from clipjax.trees import flatten_with_names

KERNEL = np.arange(32 * 4, dtype=np.float32).reshape(32, 4) / 100


def captioner():
    """The objective of docs/extending.md, as it stands there."""
    module = types.ModuleType("my_lab.objectives")
    sys.modules["my_lab.objectives"] = module  # dataclasses look their module up
    exec(CAPTIONER, vars(module))
    return module.Captioner


class Distiller(nn.Module):
    """The captioner, and a student of a fixed projection of the texts' tokens."""

    pair_loss: Any
    vocab_size: int
    weight: float = 1.0

    needs = ("image_tokens", "text_tokens")

    @nn.compact
    def __call__(self, outputs, batch, rng):
        make = sys.modules["my_lab.objectives"].Captioner
        whole = make(self.pair_loss, self.vocab_size, self.weight, name="captioner")
        loss, metrics = whole(outputs, batch, rng)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed", None))
        teacher = self.variable("teacher", "kernel", lambda: zeros(None, KERNEL.shape))
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            calls.value += 1
        pooled = outputs.text_tokens.mean(axis=1)
        noise = jax.random.normal(rng, pooled.shape)
        student = nn.Dense(4, name="student")(pooled + 0.01 * noise)
        distance = jnp.mean((student - pooled @ teacher.value) ** 2)
        return loss + distance, {**metrics, "distance": distance}

    def load_collections(self):
        return {"teacher": {"kernel": KERNEL}}


class Misread(Distiller):
    def load_collections(self):
        return {"teacher": {"kernel": KERNEL.T}}


class Greedy:
    needs = ("image_hidden",)


class Needless:
    pass


@pytest.fixture(scope="module", autouse=True)
def lab():
    parts = types.ModuleType("my_lab.parts")
    for each in (Distiller, Misread, Greedy, Needless):
        setattr(parts, each.__name__, each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
        patch.setitem(sys.modules, "my_lab.parts", parts)
        captioner()
        yield
    del sys.modules["my_lab.objectives"]


def small_config(objective="my_lab.parts:Distiller", **changes):
    config = shipped("smoke", "steps=4,batch_size=8")
    config.model.image.depth = config.model.text.depth = 1
    config.model.text.vocab_size = 49408
    config.scan_layers, config.remat = False, "none"
    config.tensorboard = config.report = False
    config.checkpoint.every_steps, config.log_every = 2, 1
    config.mesh.data, config.mesh.fsdp, config.sharding = 1, 2, "fsdp"
    config.optimizer.ema_decay = 0.9
    del config.evals.zero_shot
    config.objective = {"name": objective}
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def program_of(config):
    return build_program(resolve(config), devices=jax.devices()[:2])


def experiment_of(config, workdir):
    with pytest.MonkeyPatch.context() as patch:
        two = functools.partial(build_program, devices=jax.devices()[:2])
        patch.setattr("clipjax.experiment.run.build_program", two)
        return build_experiment(resolve(config), workdir)


def run(config, workdir):
    return train(experiment_of(config, workdir))


def leaves(state):
    return {name: np.asarray(x) for name, x in flatten_with_names(jax.device_get(state))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps: workdir, last state."""
    workdir = tmp_path_factory.mktemp("objective")
    return workdir, run(small_config(), workdir)


def test_its_parameters_are_like_all_others(trained):
    workdir, state = trained
    words = state.params["objective"]["captioner"]["words"]["embedding"]
    assert words.shape == (49408, 32)
    assert words.addressable_shards[0].data.shape == (24704, 32)  # fsdp, by its logical axes
    moments = optax.tree.get(state.opt_state, "mu")
    assert moments["objective"]["captioner"]["words"]["embedding"].sharding == words.sharding
    assert float(jnp.abs(moments["objective"]["student"]["kernel"]).max()) > 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["loss"] > row["caption_loss"] > 0 for row in rows)
    summary = program_of(small_config()).optimizer_summary
    line = next(text for text in summary.splitlines() if "objective/student/kernel" in text)
    assert line.split()[-1] == "decayed" and "not decayed" not in line


def test_a_teacher_is_kept_and_not_optimised(trained):
    state = leaves(trained[1])
    np.testing.assert_array_equal(state["model_state/teacher/objective/kernel"], KERNEL)
    assert state["model_state/counts/objective/calls"] == 4
    assert [name for name in state if "teacher" in name] == ["model_state/teacher/objective/kernel"]
    teacher = trained[1].model_state["teacher"]["objective"]["kernel"]
    assert teacher.addressable_shards[0].data.shape == (16, 4)  # by its logical axes


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(trained, tmp_path, monkeypatch):
    """And without the file that the teacher came from."""
    monkeypatch.setenv("CLIPJAX_FAULT", "raise@loop.step:step=3")
    with pytest.raises(InjectedFault):
        run(small_config(), tmp_path)
    monkeypatch.delenv("CLIPJAX_FAULT")
    monkeypatch.setattr(Distiller, "load_collections", lambda self: pytest.fail("read again"))
    state = leaves(run(small_config(), tmp_path))
    for name, value in leaves(trained[1]).items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_stage_leaves_the_objective_of_another_as_it_is(tmp_path, monkeypatch, first):
    """Two steps with the pairs alone before two with the captioner, or after them.

    Killed inside of either stage and behind the first, the run ends the same to the bit.
    """
    names = ["my_lab.parts:Distiller", "pair"] if first else ["pair", "my_lab.parts:Distiller"]
    config = small_config(names[1])
    config.stages = ({"until_step": 2, "objective": {"name": names[0]}},)
    config.schedule.warmup_steps, config.optimizer.ema_decay = 1, None
    start = leaves(program_of(config).create_state(config.seed))
    end = leaves(run(config, tmp_path))
    middle = load_params(tmp_path / "checkpoints" / "2", objective=True)
    middle = {f"params/{name}": leaf for name, leaf in flatten_with_names(middle)}
    own = {name for name in start if name.startswith("params/objective/")}
    assert own and own < {name for name in start if name.startswith("params/")}
    before, after = (
        {name for name in own if not np.array_equal(start[name], middle[name])},
        {name for name in own if not np.array_equal(middle[name], end[name])},
    )
    assert (before, after) == ((own, set()) if first else (set(), own))
    assert end["model_state/counts/objective/calls"] == 2
    np.testing.assert_array_equal(end["model_state/teacher/objective/kernel"], KERNEL)

    monkeypatch.setattr("clipjax.faults.fired", set())
    config.checkpoint.every_steps = 1
    for step in (1, 2, 3):
        monkeypatch.setenv("CLIPJAX_FAULT", f"raise@loop.step:step={step}")
        with pytest.raises(InjectedFault):
            run(config, tmp_path / "killed")
    monkeypatch.delenv("CLIPJAX_FAULT")
    again = leaves(run(config, tmp_path / "killed"))
    assert again.keys() == end.keys()
    for name, leaf in again.items():
        np.testing.assert_array_equal(leaf, end[name], err_msg=name)


def test_a_checkpoint_opens_without_its_objective(trained, monkeypatch):
    """Eval, classify and convert read the towers, and import nothing."""
    for name in ("my_lab", "my_lab.parts", "my_lab.objectives"):
        monkeypatch.delitem(sys.modules, name)
    workdir, state = trained
    step_dir = choose_step(workdir).step_dir
    model = Model.from_checkpoint(workdir)
    towers = {name for name in state.params if name != "objective"}
    assert set(model.variables) == {"params"} and set(model.variables["params"]) == towers
    assert set(load_params(step_dir, objective=True)) == {*towers, "objective"}
    assert load_model_state(step_dir) == {}
    found = read(workdir, NO_HINTS)
    assert found.leaves and not any("objective" in name for name in found.leaves)


def test_what_is_no_objective_is_refused():
    for name, words in {
        "my_lab.parts:Needless": r"config\.objective\.name = 'my_lab.parts:Needless' is no objecti",
        "my_lab.parts:Greedy": r"needs 'image_hidden'; outputs can hold image_tokens and text_to",
        "pairs": r"config\.objective\.name = 'pairs' is unknown; allowed are pair.*mean 'pair'",
        "my_lab.parts:None": r"config\.objective\.name = 'my_lab.parts:None' cannot be imported",
    }.items():
        with pytest.raises(ValueError, match=words):
            resolve(small_config(name))
    with pytest.raises(ValueError, match=r"config\.objective\.wait is not a field.*'weight'"):
        config = small_config()
        config.objective = {"name": "my_lab.parts:Distiller", "wait": 2.0}
        resolve(config)


def test_gradient_caching_is_refused_by_name():
    with pytest.raises(ValueError, match=r"micro_batch_size = 4 and config\.objective\.name = 'my"):
        resolve(small_config(micro_batch_size=4))
    resolve(small_config(micro_batch_size=8))  # the whole batch
    with pytest.raises(ValueError, match=r"num_micro_batches = 2.*Distiller is none"):
        make_train_step(None, Distiller(None, 9), optax.sgd(0.1), num_micro_batches=2)


def test_a_teacher_of_another_shape_is_refused():
    program = program_of(small_config("my_lab.parts:Misread"))
    with pytest.raises(ValueError, match=r"teacher/kernel as \[4, 32\].*declares it as \[32, 4\]"):
        program.create_state(0)


@pytest.mark.slow
def test_a_start_takes_towers_or_all(trained, tmp_path):
    """A run of pairs takes the towers; one of the objective asks for what a checkpoint lacks."""

    def load(objective, checkpoint, **changes):
        changes |= {"init.checkpoint": str(checkpoint)}
        experiment = experiment_of(small_config(objective, **changes), tmp_path / "run")
        return experiment.load_init(experiment.program.abstract_state)

    state, report = load("pair", trained[0])
    assert report.loaded and set(state.params) == set(trained[1].params) - {"objective"}
    state, _ = load("my_lab.parts:Distiller", trained[0])
    for name, value in leaves(state.params).items():
        np.testing.assert_array_equal(value, leaves(trained[1].ema_params)[name], err_msg=name)
    write(tmp_path / "towers", read(trained[0], NO_HINTS))
    with pytest.raises(ValueError, match=r"objective/student/bias: in the model only; add it to "):
        load("my_lab.parts:Distiller", tmp_path / "towers")
