"""Saving and restoring: exact, asynchronous, atomic, on any mesh, never a wrong value."""

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import wait_until
from jax.sharding import NamedSharding, PartitionSpec

from clipjax import faults
from clipjax.checkpoint import (
    CheckpointManager,
    CheckpointSaveError,
    DamagedCheckpointError,
    NonFiniteStateError,
    choose_step,
    folders,
    load_params,
    read_manifest,
    restore,
)
from clipjax.checkpoint import manifest as manifests
from clipjax.data.storage import retrying
from clipjax.data.storage.retrying import StorageError
from clipjax.train_state import create_train_state
from clipjax.trees import flatten_with_names


def steps_in(directory):
    return sorted(p.name for p in directory.iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_exact(tmp_path, kit, ema):
    state = kit.make_state(3, ema=ema)
    with kit.manager(tmp_path) as manager:
        manager.save(3, state, block=True)
        assert manager.latest_step() == 3
    restored, step = kit.manager(tmp_path).restore_latest(kit.abstract_of(state))
    assert step == 3
    kit.assert_equal(restored, state)
    assert all(
        a.sharding == b.sharding
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True)
    )
    with pytest.raises(AssertionError):  # negative control
        kit.assert_equal(restored, kit.make_state(4, ema=ema))


def test_nothing_saved_is_none(tmp_path, kit):
    manager = kit.manager(tmp_path / "new")
    assert manager.restore_latest(kit.abstract_of(kit.make_state())) is None
    assert manager.latest_step() is None


def test_reshards_from_eight_devices_to_four_by_two_to_one(tmp_path, kit):
    original = state = kit.make_state(1)
    for number, mesh in enumerate((kit.mesh_of(4, 2), kit.mesh_of(1)), 1):
        directory = tmp_path / str(number)
        with kit.manager(directory) as manager:
            manager.save(1, state)
        state, _ = kit.manager(directory).restore_latest(kit.abstract_of(state, mesh))
        assert state.params["image_encoder"]["kernel"].sharding.mesh == mesh
        kit.assert_equal(state, original)


def test_donated_state_is_saved_as_it_was(tmp_path, kit):
    """The step overwrites the state's buffers while the save is under way."""
    state = kit.make_state(0)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step_fn = jax.jit(
        lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0, out_shardings=shardings
    )
    expected = {}
    with kit.manager(tmp_path, keep=100) as manager, jax.transfer_guard("disallow"):
        for step in range(20):
            if step % 4 == 0:
                expected[step] = jax.tree.map(
                    lambda x: np.array(jax.device_get(x), copy=True), state
                )
                manager.save(step, state)
            state = step_fn(state)
    for step, values in expected.items():
        for name, value in flatten_with_names(values):
            record = next(r for r in read_manifest(tmp_path / str(step)).leaves if r.name == name)
            assert record.sha256 == manifests.digest_array(value)
    restored, step = kit.manager(tmp_path).restore_latest(kit.abstract_of(state))
    assert step == 16
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(expected[16]), strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


def test_save_does_not_wait_for_hashing(tmp_path, kit, monkeypatch):
    go_on = threading.Event()
    original = manifests.record_files

    def slow(*arguments):
        assert go_on.wait(30)
        return original(*arguments)

    monkeypatch.setattr(manifests, "record_files", slow)
    with kit.manager(tmp_path) as manager:
        manager.save(1, kit.make_state(1))
        assert manager.latest_step() is None  # returned, and not yet committed
        go_on.set()
        manager.wait_until_finished()
        assert manager.latest_step() == 1


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(1, None, ["5"]), (2, None, ["4", "5"]), (1, 2, ["2", "4", "5"]), (9, None, list("12345"))],
)
def test_retention(tmp_path, kit, keep, keep_every, left):
    state = kit.make_state(0)
    with kit.manager(tmp_path, keep=keep, keep_every=keep_every) as manager:
        for step in range(1, 6):
            manager.save(step, state)
    assert steps_in(tmp_path) == left


def test_the_only_verified_step_outlives_a_failed_save(tmp_path, kit, monkeypatch):
    """keep=1: step 1 goes only when step 2 is committed."""
    state = kit.make_state(1)
    manager = kit.manager(tmp_path, keep=1)
    manager.save(1, state, block=True)
    monkeypatch.setenv(faults.FAULT, "raise@save.before_manifest:step=2")
    manager.save(2, state)
    with pytest.raises(CheckpointSaveError, match="InjectedFault"):
        manager.wait_until_finished()
    assert steps_in(tmp_path) == ["1", "2"]
    restored, step = kit.manager(tmp_path).restore_latest(kit.abstract_of(state))
    assert step == 1
    kit.assert_equal(restored, state)
    assert steps_in(tmp_path) == ["1", "2.unfinished"]
    with kit.manager(tmp_path, keep=1) as manager:
        manager.save(2, state)
    assert steps_in(tmp_path) == ["2"]  # the next good save sweeps


def test_of_a_process_that_is_gone_a_save_shows_no_dump(tmp_path, kit, monkeypatch, caplog):
    def gone(snapshot):
        raise jax.errors.JaxRuntimeError(
            "UNAVAILABLE: recvmsg:Connection reset by peer\nfrom coordination_service while calling"
        )

    monkeypatch.setattr("clipjax.checkpoint.saving.hash_blocks", gone)
    manager = kit.manager(tmp_path)
    manager.save(1, kit.make_state(1))
    with pytest.raises(CheckpointSaveError, match="another process of the run is gone") as found:
        manager.wait_until_finished()
    assert "coordination_service" not in f"{found.value}{caplog.text}"
    assert "coordination_service" in str(found.value.__cause__)


def test_background_error_comes_out_everywhere(tmp_path, kit, monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@save.before_rename")
    monkeypatch.setattr(faults, "fired", set())
    manager = kit.manager(tmp_path)
    manager.save(1, kit.make_state(1))

    def is_told():
        try:
            return manager.check_for_errors()
        except CheckpointSaveError:
            return True

    wait_until(is_told)
    for call in (
        manager.check_for_errors,
        manager.wait_until_finished,
        lambda: manager.save(2, kit.make_state(2)),
    ):
        with pytest.raises(CheckpointSaveError, match="step 1 could not be written"):
            call()
    manager.close()  # it was raised before: closing must not hide another exception


def test_close_raises_what_nobody_saw(tmp_path, kit, monkeypatch):
    monkeypatch.setenv(faults.FAULT, "raise@save.before_rename:step=77")
    with pytest.raises(CheckpointSaveError), kit.manager(tmp_path) as manager:
        manager.save(77, kit.make_state(1))


def test_no_space_is_seen_before_the_save(tmp_path, kit, monkeypatch):
    state = kit.make_state(1)
    manager = kit.manager(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointSaveError, match=r"no space for a checkpoint.*MiB"):
        manager.save(1, state)
    assert steps_in(tmp_path) == []
    monkeypatch.undo()
    with kit.manager(tmp_path) as manager:  # space returns
        manager.save(1, state)
    assert steps_in(tmp_path) == ["1"]


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_disk_that_fills_up_during_a_save(small_disk, kit, monkeypatch):
    noise = np.random.default_rng(0).normal(size=(1024, 256)).astype(np.float32)  # 1 MiB
    small, large = {"params": jnp.ones(3)}, {"params": jnp.asarray(noise)}
    monkeypatch.setattr("clipjax.checkpoint.saving.FREE_SPACE_FACTOR", 0.0)
    manager = kit.manager(small_disk)
    manager.save(1, small, block=True)
    with pytest.raises(CheckpointSaveError, match="no space left on the device"):
        manager.save(2, large, block=True)
    assert steps_in(small_disk) == ["1"]  # and no temporary folder that keeps the disk full
    _, step = kit.manager(small_disk).restore_latest(kit.abstract_of(small))
    assert step == 1


def test_error_number_of_a_full_disk_is_told_plainly(tmp_path, kit, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifests, "write_manifest", full)
    manager = kit.manager(tmp_path)
    with pytest.raises(CheckpointSaveError, match="no space left on the device"):
        manager.save(1, kit.make_state(1), block=True)


@pytest.mark.parametrize("root", ["params", "ema_params"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(tmp_path, kit, root, value):
    state = kit.make_state(1, ema=True)
    bad = getattr(state, root) | {"logit_scale": jnp.float32(value)}
    with (
        pytest.raises(NonFiniteStateError, match=f"step 1.*{root}/logit_scale"),
        kit.manager(tmp_path) as manager,
    ):
        manager.save(1, state.replace(**{root: bad}))  # and it comes out behind the loop
    assert steps_in(tmp_path) == []
    with kit.manager(tmp_path) as manager:
        # A moment may be infinite, and a good state can still be saved.
        manager.save(1, state.replace(skipped=jnp.float32(np.inf)))
    assert steps_in(tmp_path) == ["1"]


def test_the_same_step_is_saved_once_and_older_ones_never(saved, kit):
    directory, states = saved
    before = (directory / "4" / "manifest.json").stat().st_mtime_ns
    with kit.manager(directory) as manager:
        manager.save(4, states[4], block=True)
        assert (directory / "4" / "manifest.json").stat().st_mtime_ns == before
        with pytest.raises(ValueError, match="holds step 4 already"):
            manager.save(3, states[3])


def test_folders_follow_the_umask(tmp_path, kit):
    old = os.umask(0o027)
    try:
        with kit.manager(tmp_path / "c") as manager:
            manager.save(1, kit.make_state(1))
    finally:
        os.umask(old)
    for path in (tmp_path / "c").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_bad_arguments(tmp_path, kit):
    with pytest.raises(ValueError, match="keep = 0"):
        kit.manager(tmp_path, keep=0)
    with pytest.raises(ValueError, match="mounted file system"):
        kit.manager("gs://bucket/run")
    with pytest.raises(ValueError, match="metadata has the keys"):
        CheckpointManager(tmp_path, metadata={"config": {}})
    with pytest.raises(ValueError, match="not plain JSON"):
        kit.manager(tmp_path, metadata=kit.metadata | {"config": {"x": object()}})
    with pytest.raises(ValueError, match="key_data"):
        kit.manager(tmp_path).save(1, {"key": jax.random.key(0)})
    with pytest.raises(ValueError, match="state leaf count is int"):
        kit.manager(tmp_path).save(1, {"count": 3})


# Restoring into another state


def with_kernel(state, **changes):
    encoder = state.params["image_encoder"] | changes
    return state.replace(params=state.params | {"image_encoder": encoder})


KERNEL = "params/image_encoder/kernel"
MISMATCHES = {
    "dtype": (
        lambda s: with_kernel(s, kernel=jax.ShapeDtypeStruct((16, 4), jnp.bfloat16)),
        f"{KERNEL}: [16, 4] float32 in the checkpoint, [16, 4] bfloat16 in the state",
    ),
    "integer dtype": (
        lambda s: s.replace(step=jax.ShapeDtypeStruct((), jnp.float32)),
        "step: [] int32 in the checkpoint, [] float32 in the state",
    ),
    "shape": (
        lambda s: with_kernel(s, kernel=jax.ShapeDtypeStruct((16, 5), jnp.float32)),
        f"{KERNEL}: [16, 4] float32 in the checkpoint, [16, 5] float32 in the state",
    ),
    "transposed": (
        lambda s: with_kernel(s, kernel=jax.ShapeDtypeStruct((4, 16), jnp.float32)),
        f"{KERNEL}: [16, 4] float32 in the checkpoint, [4, 16] float32 in the state",
    ),
    "extra key": (
        lambda s: with_kernel(s, bias=jax.ShapeDtypeStruct((4,), jnp.float32)),
        "params/image_encoder/bias: absent in the checkpoint, [4] float32 in the state",
    ),
    "missing key": (
        lambda s: s.replace(params={"logit_scale": s.params["logit_scale"]}),
        f"{KERNEL}: [16, 4] float32 in the checkpoint, absent in the state",
    ),
    "renamed key": (
        lambda s: s.replace(params={f"my_{key}": value for key, value in s.params.items()}),
        "params/my_logit_scale: absent in the checkpoint, [] float32 in the state",
    ),
    "other optimizer": (
        lambda s: s.replace(opt_state=()),
        "opt_state/0/count: [] int32 in the checkpoint, absent in the state",
    ),
    "average wanted": (
        lambda s: s.replace(ema_params=s.params),
        "ema_params/logit_scale: absent in the checkpoint, [] float32 in the state",
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_another_state_is_an_error_that_names_leaf_and_both_values(saved, kit, kind):
    directory, states = saved
    change, message = MISMATCHES[kind]
    with pytest.raises(ValueError, match="another state") as error:
        kit.manager(directory).restore_latest(change(kit.abstract_of(states[4])))
    assert message in str(error.value)
    assert steps_in(directory) == list("1234")  # a mistake of the caller's is no damage


# Damage


def damage(step_dir, name="state/_METADATA"):
    path = step_dir / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_step_is_set_aside_and_the_one_before_restored(saved, kit, caplog):
    directory, states = saved
    damage(directory / "4")
    shutil.rmtree(directory / "3" / "state" / "d")
    restored, step = kit.manager(directory).restore_latest(kit.abstract_of(states[2]))
    assert step == 2
    kit.assert_equal(restored, states[2])
    assert steps_in(directory) == ["1", "2", "3.damaged", "4.damaged"]
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 2 and "4.damaged" in errors[0] and "SHA-256" in errors[0]
    with kit.manager(directory) as manager:  # the run writes the step again
        manager.save(3, states[3])
        manager.save(4, states[4])
        manager.wait_until_finished()
        damage(directory / "4")
    _, step = kit.manager(directory).restore_latest(kit.abstract_of(states[2]))
    assert step == 3 and "4.damaged.1" in steps_in(directory)


def test_three_damaged_steps_stop_the_run(saved, kit):
    directory, states = saved
    for step in (2, 3, 4):
        damage(directory / str(step))
    with pytest.raises(DamagedCheckpointError, match="newest 3 checkpoints"):
        kit.manager(directory).restore_latest(kit.abstract_of(states[1]))
    _, step = kit.manager(directory).restore_latest(kit.abstract_of(states[1]))
    assert step == 1


def test_a_run_whose_steps_are_all_damaged_does_not_start_from_scratch(saved, kit):
    directory, states = saved
    for step in (1, 2, 3):
        shutil.rmtree(directory / str(step))
    damage(directory / "4")
    for _ in range(2):  # nor does the next start
        with pytest.raises(DamagedCheckpointError, match=r"only damaged ones \(4.damaged\)"):
            kit.manager(directory).restore_latest(kit.abstract_of(states[1]))


def test_a_lost_manifest_further_down_is_damage_not_an_unfinished_save(saved, kit):
    directory, states = saved
    for step in (3, 4):
        (directory / str(step) / "manifest.json").unlink()
    _, step = kit.manager(directory).restore_latest(kit.abstract_of(states[1]))
    assert step == 2
    assert steps_in(directory) == ["1", "2", "3.damaged", "4.unfinished"]


def test_values_that_change_between_file_and_memory_are_seen(saved, kit, monkeypatch):
    """The leaf digests do not rely on the files': they were taken from the state itself."""
    directory, states = saved
    from clipjax.checkpoint import restore

    original = restore.restore_tree
    calls = []

    def wrong_once(step_dir, tree, **options):
        state = original(step_dir, tree, **options)
        calls.append(step_dir.name)
        return state.replace(step=state.step + 1) if len(calls) == 1 else state

    monkeypatch.setattr(restore, "restore_tree", wrong_once)
    restored, step = kit.manager(directory).restore_latest(kit.abstract_of(states[1]))
    assert (calls, step) == (["4", "3"], 3)
    kit.assert_equal(restored, states[3])


def test_unreadable_is_not_damaged(saved, kit, monkeypatch):
    directory, states = saved

    def refuse(_):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(manifests, "sha256_of_file", refuse)
    with pytest.raises(OSError, match=r"denied\. No checkpoint .* was renamed"):
        kit.manager(directory).restore_latest(kit.abstract_of(states[1]))
    assert steps_in(directory) == list("1234")


@pytest.mark.parametrize(
    ("error", "place"),
    [
        ("EIO", "verify"),
        ("ESTALE", "read_manifest"),
        ("EMFILE", "look"),
        ("ENOMEM", "restore"),
        ("ETIMEDOUT", "verify"),
    ],
)
def test_storage_that_fails_condemns_nothing(saved, kit, monkeypatch, error, place):
    """It is asked again; what fails for good stops the run, and all steps stay as they are."""
    monkeypatch.setattr(retrying, "FIRST_DELAY_S", 0.001)
    directory, states = saved
    abstract = kit.abstract_of(states[1])
    monkeypatch.setenv(faults.FAULT, f"{error}@checkpoint.{place}:times=2")
    restored, step = kit.manager(directory).restore_latest(abstract)
    assert step == 4
    kit.assert_equal(restored, states[4])
    monkeypatch.setenv(faults.FAULT, f"{error}@checkpoint.{place}:times=1000")
    with pytest.raises(StorageError, match=f"failed 6 times.*{error}.*No checkpoint in .* renamed"):
        kit.manager(directory).restore_latest(abstract)
    with pytest.raises(StorageError, match=error):
        load_params(choose_step(directory).step_dir)
        manifests.verify_files(directory / "4", read_manifest(directory / "4").files)
    assert steps_in(directory) == list("1234")


def test_what_tensorstore_says_of_the_system_is_an_error_of_the_system():
    with pytest.raises(OSError, match="Too many") as found, restore.system_errors():
        raise ValueError("RESOURCE_EXHAUSTED: Too many open files [os_error_code='24']")
    assert found.value.errno == errno.EMFILE
    with pytest.raises(ValueError, match="no file"), restore.system_errors():
        raise ValueError("NOT_FOUND: no file [os_error_code='2']")


@pytest.mark.parametrize("place", ["save.delete", "save.rename_old"])
def test_an_old_step_that_cannot_be_deleted_stops_nothing(
    tmp_path, kit, monkeypatch, caplog, place
):
    monkeypatch.setenv(faults.FAULT, f"EBUSY@{place}")
    with kit.manager(tmp_path, keep=1) as manager:
        manager.save(1, kit.make_state(1), block=True)
        manager.save(2, kit.make_state(2), block=True)
        left = {"save.delete": "1.deleting", "save.rename_old": "1"}[place]
        assert steps_in(tmp_path) == sorted([left, "2"])
        assert "is not deleted yet" in caplog.text and "EBUSY" in caplog.text
        manager.save(3, kit.make_state(3), block=True)
    assert steps_in(tmp_path) == ["3"]


def test_a_half_written_step_that_cannot_be_deleted_stops_nothing(
    tmp_path, kit, monkeypatch, caplog
):
    """A killed save of step 2, with a file that somebody holds, as on NFS: it is saved again."""
    name, whole = f"2{folders.TMP}", shutil.rmtree
    (tmp_path / name / "held").mkdir(parents=True)

    def busy(path, *arguments, **options):
        if (Path(path) / "held").exists():
            raise OSError(errno.EBUSY, "Device or resource busy")
        whole(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", busy)
    with kit.manager(tmp_path) as manager:
        manager.save(2, kit.make_state(2), block=True)
        assert steps_in(tmp_path) == ["2", "2.unfinished"] and "not deleted yet" in caplog.text
        monkeypatch.setattr(shutil, "rmtree", whole)
        manager.save(3, kit.make_state(3), block=True)
    assert steps_in(tmp_path) == ["2", "3"]


def test_where_old_steps_cannot_be_listed_the_new_one_is_saved(tmp_path, kit, monkeypatch, caplog):
    """Storage that fails after the commit: nothing is deleted, and nothing is said to be lost."""
    monkeypatch.setattr(retrying, "FIRST_DELAY_S", 0.001)
    whole = folders.entries
    with kit.manager(tmp_path, keep=1) as manager:
        manager.save(1, kit.make_state(1), block=True)
        listed = []

        def fail_once(directory):
            listed.append(directory)
            if (tmp_path / "2" / folders.MANIFEST).exists() and "tried again" not in caplog.text:
                raise OSError(errno.EIO, "Input/output error")
            return whole(directory)

        monkeypatch.setattr(folders, "entries", fail_once)
        manager.save(2, kit.make_state(2), block=True)
        assert "old steps are not deleted yet" in caplog.text
        assert steps_in(tmp_path) == ["1", "2"]
        listed.clear()
        manager.save(3, kit.make_state(3), block=True)
    assert steps_in(tmp_path) == ["3"]
    assert len(listed) == 2  # before the save, and for all that retention looks at


def test_of_an_old_step_that_is_a_link_only_the_link_goes(tmp_path, kit):
    directory, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    with kit.manager(directory, keep=1) as manager:
        manager.save(1, kit.make_state(1), block=True)
    (directory / "1").rename(elsewhere)
    (directory / "1").symlink_to(elsewhere)
    with kit.manager(directory, keep=1) as manager:
        manager.save(2, kit.make_state(2), block=True)
    assert steps_in(directory) == ["2"] and (elsewhere / "manifest.json").is_file()


def state_of(params):
    def create():
        leaves = jax.tree.map(jnp.asarray, params)
        return create_train_state({"params": leaves}, optax.adamw(1e-3), with_ema=True)

    return jax.jit(create)()


def blocks_of(shape, depth):
    """Parameters of one tower, its blocks apart and stacked."""
    rng = np.random.default_rng(0)
    blocks = [{"kernel": rng.normal(size=shape).astype(np.float32)} for _ in range(depth)]
    apart = {"text": {f"block_{i}": b for i, b in enumerate(blocks)}, "scale": np.float32(1)}
    kernels = np.stack([block["kernel"] for block in blocks])
    return apart, {"text": {"blocks": {"kernel": kernels}}, "scale": np.float32(1)}


def test_a_state_whose_blocks_were_saved_apart_is_stacked(kit, tmp_path):
    apart, stacked = blocks_of((3, 4), 11)
    with CheckpointManager(tmp_path, metadata=kit.metadata) as manager:
        manager.save(3, state_of(apart), block=True)
    wanted = state_of(stacked)
    with CheckpointManager(tmp_path, metadata=kit.metadata) as manager:
        found, step = manager.restore_latest(kit.abstract_of(wanted))
    assert step == 3
    kit.assert_equal(found.params, wanted.params)
    kit.assert_equal(found.ema_params, wanted.ema_params)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    # What stands apart on both sides is another model's, and stays so.
    with CheckpointManager(tmp_path, metadata=kit.metadata) as manager:
        found, _ = manager.restore_latest(kit.abstract_of(state_of(apart)))
    assert set(found.params["text"]) == set(apart["text"])


def test_blocks_that_were_saved_apart_are_read_where_their_stack_lies(kit, tmp_path, monkeypatch):
    apart, stacked = blocks_of((8, 4), 3)
    with CheckpointManager(tmp_path, metadata=kit.metadata) as manager:
        manager.save(3, state_of(apart), block=True)
    mesh, wanted, read = kit.mesh_of(1, 8), state_of(stacked), {}

    def abstract(leaf):
        spec = PartitionSpec(None, "fsdp") if leaf.ndim == 3 else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def restore_tree(step_dir, tree, **options):
        found = original(step_dir, tree, **options)
        read.update(flatten_with_names(found))
        return found

    original = restore.restore_tree
    monkeypatch.setattr(restore, "restore_tree", restore_tree)
    asked = jax.tree.map(abstract, wanted)
    with CheckpointManager(tmp_path, metadata=kit.metadata) as manager:
        found, _ = manager.restore_latest(asked)
    kit.assert_equal(found, wanted)
    blocks = [leaf for name, leaf in read.items() if "block_" in name]
    assert len(blocks) == 3 * 4  # parameters, two moments, the average
    assert {leaf.addressable_shards[0].data.shape for leaf in blocks} == {(1, 4)}
    assert {len(leaf.sharding.device_set) for leaf in read.values()} == {8}
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(asked), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
