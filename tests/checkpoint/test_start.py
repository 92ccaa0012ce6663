"""Parameters from a checkpoint alone, into a model that is not quite the same."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clipjax.checkpoint import (
    DamagedCheckpointError,
    choose_step,
    load_model_state,
    load_params,
    load_pretrained,
    open_checkpoint,
)

# Where a path leads


def test_workdir_folder_and_step_mean_a_checkpoint(saved):
    directory, _ = saved
    assert open_checkpoint(directory.parent).step_dir == directory / "4"
    assert open_checkpoint(str(directory)).step_dir == directory / "4"
    assert open_checkpoint(directory / "2").step_dir == directory / "2"
    (directory / "4" / "manifest.json").unlink()
    assert open_checkpoint(directory).step_dir == directory / "3"


def test_newer_steps_that_cannot_be_used_are_said(saved, caplog):
    directory, _ = saved
    with caplog.at_level("WARNING"):
        assert open_checkpoint(directory.parent).step_dir == directory / "4"
        assert not caplog.messages  # a whole newest step is no news
        (directory / "3.damaged").mkdir()  # older than what is used
        (directory / "9.deleting").mkdir()  # nobody's loss
        assert open_checkpoint(directory).step_dir == directory / "4" and not caplog.messages
        for name in ("12.damaged.1", "11.unfinished", "13", "14.orbax-checkpoint-tmp-7"):
            (directory / name).mkdir()
        assert open_checkpoint(directory.parent).step_dir == directory / "4"
    assert caplog.messages == [
        f"step 4 of {directory} is used, and newer ones are not: "
        "11.unfinished: its save was cut off; 12.damaged.1: it was found damaged; "
        "13: its save is not finished (no manifest.json); "
        "14.orbax-checkpoint-tmp-7: its save is not finished"
    ]
    assert choose_step(directory / "2").passed_over == ()  # asked for by name


def test_damage_names_the_file_and_the_older_step(saved):
    directory, _ = saved
    manifest = directory / "4" / "manifest.json"
    whole = manifest.read_text()
    for text in (whole[:-50], whole.replace('"seed"', '"sead"', 1)):
        manifest.write_text(text)
        with pytest.raises(DamagedCheckpointError, match="manifest") as error:
            open_checkpoint(directory)
        assert str(error.value).endswith(f"step 3 is there as well: give {directory / '3'}")
    manifest.write_text(whole)
    shutil.rmtree(directory / "4")
    shutil.copytree(directory / "3", directory / "4")
    with pytest.raises(DamagedCheckpointError, match=rf"{directory}/4 holds step 3; step 3 is"):
        open_checkpoint(directory)
    shutil.rmtree(directory / "4")
    for file in (directory / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(DamagedCheckpointError, match="step 2 is there as well") as error:
        load_params(open_checkpoint(directory).step_dir)
    assert str(directory / "3") in str(error.value)


def test_a_bucket_is_no_checkpoint_folder():
    with pytest.raises(ValueError, match=r"gs://b/run is in a bucket.* mount the bucket"):
        open_checkpoint("gs://b/run")


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_checkpoint_is_one_sentence(tmp_path, kind):
    path = {"missing": tmp_path / "x", "file": tmp_path / "f", "empty": tmp_path / "e"}[kind]
    (tmp_path / "f").touch()
    (tmp_path / "e" / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"^no checkpoint at {path}: ") as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)


# Loading


def test_params_come_without_the_rest(saved, kit):
    directory, states = saved
    params = load_params(directory / "4")
    assert type(params) is dict
    kit.assert_equal(params, states[4].params)
    assert params["logit_scale"].devices() == {jax.devices()[0]}
    assert load_model_state(directory / "4") == {}


def test_averages_are_preferred_and_model_state_is_found(tmp_path, kit):
    state = kit.make_state(1, ema=True)
    state = state.replace(model_state={"batch_stats": {"mean": jnp.arange(3.0)}})
    with kit.manager(tmp_path) as manager:
        manager.save(1, state)
    kit.assert_equal(load_params(tmp_path / "1"), state.ema_params)
    kit.assert_equal(load_model_state(tmp_path / "1"), state.model_state)
    with kit.manager(tmp_path / "other") as manager:
        manager.save(1, {"weights": jnp.ones(3)})
    with pytest.raises(ValueError, match="holds no params; it holds weights"):
        load_params(tmp_path / "other" / "1")


# Into a model


def tree(**leaves):
    return {"image_encoder": {k: jnp.asarray(v, jnp.float32) for k, v in leaves.items()}}


def test_equal_trees_load(kit):
    params, report = load_pretrained(tree(a=[0.0]), tree(a=[5.0]))
    kit.assert_equal(params, tree(a=[5.0]))
    assert report.loaded == ("image_encoder/a",)
    assert report.lines() == ["loaded      image_encoder/a"]


def test_dtype_and_sharding_are_the_models(kit):
    sharding = NamedSharding(kit.mesh_of(2), PartitionSpec("data"))
    wanted = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
    params, _ = load_pretrained(wanted, {"a": np.arange(4, dtype=np.float16)})
    assert params["a"].dtype == jnp.float32 and params["a"].sharding == sharding


def test_rename_drop_and_initialise(kit):
    model = tree(kernel=[0.0], head=[1.0])
    loaded = {"visual": {"kernel": jnp.float32([5.0])}, "extra": jnp.ones(3)}
    options = {"rename": [("^visual/", "image_encoder/")], "drop": ["^extra$"]}
    params, report = load_pretrained(model, loaded, initialise=["/head$"], **options)
    kit.assert_equal(params, tree(kernel=[5.0], head=[1.0]))
    assert report.loaded == ("image_encoder/kernel",)
    assert report.initialised == ("image_encoder/head",)
    assert report.ignored == ("extra",)


def test_leftovers_of_both_sides_are_named():
    with pytest.raises(ValueError) as error:
        load_pretrained(tree(a=[0.0], b=[0.0]), tree(a=[0.0], c=[0.0]))
    assert "image_encoder/c: in the checkpoint only; add it to config.init.drop" in str(error.value)
    assert "image_encoder/b: in the model only; add it to config.init.init" in str(error.value)
    assert "image_encoder/a" not in str(error.value)
    # A leaf that is to keep its initial value leaves the checkpoint's own over.
    with pytest.raises(ValueError, match="image_encoder/a: in the checkpoint only"):
        load_pretrained(tree(a=[0.0]), tree(a=[0.0]), initialise=["/a$"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rename": [("visual", "x")]},
            r"init.rename: 'visual' changes no name.*'image_encoder/a'",
        ),
        ({"rename": [("[ab]$", "z")]}, "gives two leaves the name"),
        ({"rename": [("(", "z")]}, r"init.rename: '\(' is no regular expression"),
        ({"rename": ["ab"]}, "init.rename: 'ab' is no pair"),
        ({"rename": [("a$", r"\1")]}, "cannot replace 'a\\$'"),
        ({"drop": ["*"]}, r"init.drop: '\*' is no regular expression"),
        ({"drop": ["nothing"]}, "init.drop: 'nothing' matches no leaf"),
        ({"initialise": ["nothing"]}, "init.initialise: 'nothing' matches no leaf"),
    ],
)
def test_a_pattern_without_effect_is_an_error(options, message):
    both = tree(a=[0.0], b=[0.0])
    with pytest.raises(ValueError, match=message):
        load_pretrained(both, both, **options)


def test_another_shape_is_an_error_with_both(kit):
    with pytest.raises(ValueError, match=r"image_encoder/a: \[1\] in the checkpoint, \[2\] in the"):
        load_pretrained(tree(a=[0.0, 0.0]), tree(a=[0.0]))
    shape = {"a": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ValueError, match="only its shape is here"):
        load_pretrained(shape, {"b": jnp.ones(1)}, initialise=["a"], drop=["b"])


def positions(rows, width=3):
    return {
        "transformer": {"position_embedding": np.random.default_rng(0).normal(size=(rows, width))}
    }


def resized(rows_before, rows_after, *, root="image_encoder", **options):
    old = jax.tree.map(jnp.float32, {root: positions(rows_before)})
    new = jax.tree.map(jnp.float32, {root: positions(rows_after)})
    params, report = load_pretrained(new, old, **options)
    leaf = f"{root}/transformer/position_embedding"
    assert report.resized == {leaf: ((rows_before, 3), (rows_after, 3))}
    assert f"resized     {leaf} [{rows_before}, 3] -> [{rows_after}, 3]" in report.lines()
    pick = lambda p: np.asarray(p[root]["transformer"]["position_embedding"])  # noqa: E731
    return pick(old), pick(params)


def test_image_positions_are_resized_over_the_grid_and_the_class_row_stays():
    old, new = resized(1 + 4 * 4, 1 + 6 * 6)
    np.testing.assert_array_equal(new[0], old[0])
    wanted = jax.image.resize(old[1:].reshape(4, 4, 3), (6, 6, 3), "cubic", antialias=True)
    np.testing.assert_allclose(new[1:], np.asarray(wanted).reshape(36, 3), atol=1e-6)
    assert np.abs(new[1:] - new[1]).max() > 0.1


def test_image_positions_without_a_class_row():
    old, new = resized(16, 4)
    wanted = jax.image.resize(old.reshape(4, 4, 3), (2, 2, 3), "cubic", antialias=True)
    np.testing.assert_allclose(new, np.asarray(wanted).reshape(4, 3), atol=1e-6)


def test_text_positions_are_interpolated_along_the_sequence():
    old, new = resized(4, 8, root="text_encoder")
    np.testing.assert_allclose(new[1], 0.75 * old[0] + 0.25 * old[1], atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [(16, 37, "class token"), (17, 36, "class token"), (15, 16, "no square grid")],
)
def test_positions_that_do_not_fit(before, after, message):
    with pytest.raises(ValueError, match=message):
        resized(before, after)
