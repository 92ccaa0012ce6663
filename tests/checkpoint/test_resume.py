"""Which differences of config stop a resume, and where a run starts."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clipjax.checkpoint import (
    check_resume,
    find_start,
    is_same_run,
    load_params,
    load_pretrained,
    read_manifest,
)
from clipjax.checkpoint.resume import kind_of_change
from clipjax.config import default_config, iterate_leaves, to_plain


@pytest.fixture
def manifest(four_steps):
    return read_manifest(four_steps[0] / "4")


def changed(metadata, key, value):
    metadata = copy.deepcopy(metadata)
    node = metadata
    *folders, last = key.split(".")
    for folder in folders:
        node = node[folder]
    node[last] = value
    return metadata


FATAL = {
    "config.model.name": "RN50",
    "config.batch_size": 16,
    "config.seed": 2,
    "config.optimizer.name": "lion",
    "config.optimizer.mu_dtype": "bfloat16",
    "contract.model.image.activation": "gelu",
    "contract.tokenizer.sha256": "cd",
    "dataset_fingerprint": "beef",
    "global_batch_size": 16,
    "seed": 2,
}
ASK = {
    "config.optimizer.learning_rate": 0.2,
    "config.total_steps": 200,
    "config.data.transforms": [],
}
FREE = {
    "config.log_every": 1,
    "config.data.num_workers": 0,
    "config.mesh.data": 2,
    "config.checkpoint": {"every_steps": 7},
    "config.evals": {"zero_shot": {"source": "x:y"}},
    "config.data.source": "folder:elsewhere",
    "config.resume": "runs/other",
}


def test_the_same_run_resumes(manifest, kit):
    check_resume(manifest, kit.metadata)


@pytest.mark.parametrize("key", FATAL)
def test_another_run_is_refused_even_if_changes_are_allowed(manifest, kit, key):
    metadata = changed(kit.metadata, key, FATAL[key])
    metadata["config"]["allow_config_change"] = True
    with pytest.raises(ValueError, match="workdir of another config") as error:
        check_resume(manifest, metadata)
    assert f"  {key}: " in str(error.value)
    assert f"{FATAL[key]!r} now" in str(error.value)
    assert "another workdir" in str(error.value)


@pytest.mark.parametrize("key", ASK)
def test_another_recipe_needs_leave(manifest, kit, key):
    metadata = changed(kit.metadata, key, ASK[key])
    with pytest.raises(ValueError, match="allow_config_change=true") as error:
        check_resume(manifest, metadata)
    assert f"  {key}: " in str(error.value) and f"{ASK[key]!r} now" in str(error.value)
    metadata["config"]["allow_config_change"] = True
    check_resume(manifest, metadata)


@pytest.mark.parametrize("key", FREE)
def test_what_has_no_influence_may_change(manifest, kit, key):
    check_resume(manifest, changed(kit.metadata, key, FREE[key]))


def test_a_field_younger_than_the_checkpoint_is_no_change_at_its_default(manifest, kit):
    """Fields come with a default that does what was done before there was a choice."""
    check_resume(manifest, changed(kit.metadata, "config.stages", []))
    with pytest.raises(ValueError, match="stages"):
        check_resume(manifest, changed(kit.metadata, "config.stages", [{"until_step": 3}]))


@pytest.mark.parametrize(
    ("platform", "dtype", "warned"),
    [("gpu", "bfloat16", 1), ("gpu", "float32", 0), ("cpu", "bfloat16", 0)],
)
def test_a_loss_that_is_rounded_since_is_told(manifest, kit, monkeypatch, platform, dtype, warned):
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *rest: lines.append(text % rest))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    recipe = {"loss": {"name": "clip"}, "dtype": dtype}
    older = dataclasses.replace(manifest, config={**manifest.config, **recipe})
    for loss, count in (("auto", warned), ("float32", 0)):
        metadata = changed(kit.metadata, "config.loss", {"name": "clip", "dtype": loss})
        metadata["config"] |= {"dtype": dtype}
        lines.clear()
        check_resume(older, metadata)
        assert sum("config.loss.dtype=float32 keeps" in line for line in lines) == count


def test_all_differences_are_named_at_once(manifest, kit):
    metadata = changed(changed(kit.metadata, "seed", 2), "config.model.name", "RN50")
    with pytest.raises(ValueError) as error:
        check_resume(manifest, metadata)
    assert "  seed: 1 in the checkpoint, 2 now" in str(error.value)
    assert "  config.model.name: 'ViT-B-32' in the checkpoint, 'RN50' now" in str(error.value)


def test_the_kinds_name_keys_that_exist():
    from clipjax.checkpoint.resume import CHANGES

    config = default_config().to_dict()
    prefixes = {""}
    for key, _ in iterate_leaves({k: v if v != {} else 0 for k, v in config.items()}):
        parts = key.split(".")
        prefixes |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    only_with_a_file = {"model.tokenizer.model"}  # absent in CLIP's, which needs none
    assert set(CHANGES) - only_with_a_file <= prefixes
    assert kind_of_change("model.tokenizer.model") == "free"
    assert kind_of_change("a.key.of.the.future") == "ask"
    assert kind_of_change("seed_of_something") == "ask"  # a prefix is a whole key


def test_manager_refuses_a_workdir_of_another_config(saved, kit):
    directory, states = saved
    metadata = changed(kit.metadata, "config.batch_size", 16)
    manager = kit.manager(directory, metadata=metadata)
    with pytest.raises(ValueError, match=r"config.batch_size: 8 in the checkpoint, 16 now"):
        manager.restore_latest(kit.abstract_of(states[4]))


# Where a run starts


@pytest.fixture
def start(tmp_path, kit):
    """Calls find_start for a new workdir, and counts how often a fresh state is drawn."""

    class Caller:
        drawn = 0
        fresh = kit.make_state(0, ema=True)

        def __call__(self, directory=tmp_path / "new", **options):
            def initialise():
                self.drawn += 1
                return self.fresh

            wanted = kit.make_state(0, ema=options.pop("ema", False))
            return find_start(
                kit.manager(directory), kit.abstract_of(wanted), initialise, **options
            )

    return Caller()


def test_workdir_comes_before_everything(saved, start, kit):
    directory, states = saved
    got = start(directory, resume=directory / "1", load_init=lambda _: 1 / 0)
    assert (got.source, got.step, start.drawn) == ("workdir", 4, 0)
    kit.assert_equal(got.state, states[4])


def test_resume_comes_before_init(saved, start, kit):
    directory, states = saved
    got = start(resume=directory / "2", load_init=lambda _: 1 / 0)
    assert (got.source, got.step, start.drawn) == ("resume", 2, 0)
    kit.assert_equal(got.state, states[2])
    (directory / "2" / "config" / "metadata").write_text("{}")
    with pytest.raises(RuntimeError, match=r"2/config/metadata"):
        start(resume=directory / "2")
    assert (directory / "2").is_dir()  # another run's folders are not renamed


def test_init_takes_parameters_only_and_averages_start_there(saved, start, kit):
    directory, states = saved
    loaded = load_params(directory / "4")

    def load_init(state):
        params, report = load_pretrained(state.params, loaded)
        return state.replace(params=params), report

    got = start(load_init=load_init)
    assert (got.source, got.step) == ("init", 0)
    kit.assert_equal(got.state.params, states[4].params)
    kit.assert_equal(got.state.ema_params, states[4].params)
    kit.assert_equal(got.state.opt_state, start.fresh.opt_state)
    assert len(got.report.loaded) == 3
    # Both are donated to the step, so they may not share a buffer.
    jax.jit(lambda s: jax.tree.map(jnp.negative, s), donate_argnums=0)(got.state)


def test_scratch_comes_last(start, kit):
    got = start()
    assert (got.source, got.step, got.report, start.drawn) == ("scratch", 0, None, 1)
    kit.assert_equal(got.state, start.fresh)


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("log_every", 7, True),
        ("optimizer.learning_rate", 1.0, False),
        ("total_steps", 7, False),
        ("evals.x", {"name": "zero_shot"}, False),
        ("data.source", "folder:elsewhere", False),
    ],
)
def test_a_run_is_done_for_configs_that_mean_it(path, value, same):
    old, new = to_plain(default_config()), to_plain(default_config())
    *groups, name = path.split(".")
    group = new
    for part in groups:
        group = group[part]
    group[name] = value
    assert is_same_run(old, new) == same
    del old["diagnostics"]  # of a checkpoint from before there was the field
    assert is_same_run(old, new) == same
    assert not is_same_run(old, {**new, "diagnostics": True}) or same
