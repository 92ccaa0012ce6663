"""A small state with the shapes of a real one: flax struct, optax moments, None, an empty dict."""

import importlib.util
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax.checkpoint import CheckpointManager
from clipjax.train_state import TrainState

METADATA = {
    "config": {
        "seed": 1,
        "batch_size": 8,
        "total_steps": 100,
        "model": {"name": "ViT-B-32"},
        "optimizer": {"name": "adamw", "learning_rate": 0.1, "mu_dtype": "float32"},
        "data": {"transforms": [{"name": "flip"}], "num_workers": 2},
        "mesh": {"data": -1},
        "log_every": 5,
        "allow_config_change": False,
    },
    "contract": {
        "model": {"image": {"activation": "quick_gelu", "layer_norm_eps": 1e-5}},
        "tokenizer": {"sha256": "ab", "pad_id": 0},
    },
    "dataset_fingerprint": "f00d",
    "global_batch_size": 8,
    "seed": 1,
}


def mesh_of(*sizes):
    names = ("data", "fsdp")[: len(sizes)]
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, names, axis_types=(AxisType.Auto,) * len(sizes))


def shardings_of(tree, mesh):
    """Shards the first axis over the mesh's last one, where it divides."""
    size = mesh.devices.shape[-1]

    def spec(leaf):
        divides = leaf.ndim and leaf.shape[0] % size == 0
        return NamedSharding(mesh, PartitionSpec(*mesh.axis_names[-1:] if divides else ()))

    return jax.tree.map(spec, tree)


def abstract_of(state, mesh=None):
    shardings = shardings_of(state, mesh) if mesh else jax.tree.map(lambda x: x.sharding, state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def make_state(step=0, *, ema=False, mesh=None):
    rng = np.random.default_rng(step)
    params = {
        "image_encoder": {
            "kernel": rng.normal(size=(16, 4)).astype(np.float32),
            "position_embedding": rng.normal(size=(17, 4)).astype(np.float32),
        },
        "logit_scale": np.float32(2.659),
    }
    moments = optax.adamw(1e-3, mu_dtype=jnp.bfloat16).init(jax.tree.map(jnp.asarray, params))
    state = TrainState(
        step=np.int32(step),
        params=params,
        opt_state=moments,
        model_state={},
        ema_params=jax.tree.map(lambda x: x / 2, params) if ema else None,
        skipped=np.int32(0),
        skipped_in_a_row=np.int32(0),
    )
    state = jax.tree.map(np.asarray, state)
    return jax.device_put(state, shardings_of(state, mesh or mesh_of(8)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def kit():
    """The helpers of this file, for tests that cannot import it by name."""

    class Kit:
        metadata = METADATA
        mesh_of = staticmethod(mesh_of)
        abstract_of = staticmethod(abstract_of)
        make_state = staticmethod(make_state)
        assert_equal = staticmethod(assert_equal)

        @staticmethod
        def manager(directory, **options):
            return CheckpointManager(directory, **{"metadata": METADATA, **options})

    return Kit


@pytest.fixture(scope="session")
def four_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("four_steps") / "checkpoints"
    states = {step: make_state(step) for step in (1, 2, 3, 4)}
    with CheckpointManager(directory, keep=10, metadata=METADATA) as manager:
        for step, state in states.items():
            manager.save(step, state)
    return directory, states


@pytest.fixture
def saved(tmp_path, four_steps):
    """A directory of one's own with the steps 1, 2, 3, 4, and what they hold."""
    directory, states = four_steps
    return Path(shutil.copytree(directory, tmp_path / "checkpoints")), states


@pytest.fixture(scope="session")
def killed_run():
    path = Path(__file__).with_name("killed_run.py")
    spec = importlib.util.spec_from_file_location("killed_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
