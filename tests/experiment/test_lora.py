"""LoRA in a run's own program: what is trained, what is kept of it, and where it lies."""

import jax
import numpy as np
import pytest
from config_files import shipped

from clipjax import partitioning
from clipjax.experiment import build_program, resolve
from clipjax.models.layers_layout import unstack_layers
from clipjax.trees import flatten_with_names

TRAINED = "^text_projection/"


def lora_config(**changes):
    config = shipped("smoke", "batch_size=8,steps=2")
    config.init.checkpoint = "runs/base"
    config.lora.rank, config.lora.trained = 2, (TRAINED,)
    config.remat, config.schedule.warmup_steps = "none", 0
    config.optimizer.averages = ({"name": "slow", "decay": 0.9},)
    config.model.text.update(depth=1, vocab_size=64)
    config.update_from_flattened_dict(changes)
    return config


def program_of(devices=1, **changes):
    resolved = resolve(lora_config(**changes), to_run=False)
    return build_program(resolved, jax.devices()[:devices])


def is_trained(name):
    return name.startswith(("lora/", "text_projection/"))


def test_only_factors_and_what_is_named_have_moments_and_averages():
    state = program_of().abstract_state
    shapes = {name: leaf.shape for name, leaf in flatten_with_names(state.params)}
    kernels = [name for name in shapes if "/blocks/" in name and name.endswith("kernel")]
    of_lora = [name for name in shapes if name.startswith("lora/")]
    wanted = {f"lora/{name}/{side}" for name in kernels if "lora/" not in name for side in "ab"}
    assert set(of_lora) == wanted and len(of_lora) == 16
    trained = sorted(shapes[name] for name in shapes if is_trained(name))
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * trained)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.averages)) == trained


# The axes of a kernel are those of its factors.
@pytest.mark.parametrize(
    ("sharding", "mesh", "cut"),
    [
        ("fsdp", {"mesh.data": 1, "mesh.fsdp": 2}, {"fc/kernel/a": (2, 16, 2)}),
        ("tensor", {"mesh.data": 1, "mesh.tensor": 2}, {"qkv_kernel/b": (2, 3, 2, 1, 16)}),
        ("zero1", {}, {"fc/kernel/a": (2, 32, 2)}),
    ],
)  # fmt: skip
def test_factors_are_cut_as_their_kernels_are(sharding, mesh, cut):
    program = program_of(2, sharding=sharding, **mesh)
    leaves = dict(flatten_with_names(program.abstract_state.params))
    for end, shape in cut.items():
        (leaf,) = (
            x for name, x in leaves.items() if name.startswith("lora/image") and name.endswith(end)
        )
        assert leaf.sharding.shard_shape(leaf.shape) == shape, end
    moments = jax.tree.leaves(program.abstract_state.opt_state)
    cut_moments = [x for x in moments if x.sharding.shard_shape(x.shape) != x.shape]
    assert bool(cut_moments)


def two_steps(program, start=None):
    """Parameters before and after, and the losses."""
    rng, losses = np.random.default_rng(0), []
    with program.scope():
        state = program.create_state(0)
        if start is not None:
            shardings = jax.tree.map(lambda x: x.sharding, state.params)
            state = state.replace(params=jax.device_put(start, shardings))
        before = jax.device_get(state.params)
        for _ in range(2):
            image = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
            text = rng.integers(1, 64, (8, 16), dtype=np.int32)
            batch = partitioning.global_batch({"image": image, "text": text}, program.mesh)
            state, metrics = program.stages[-1].step(state, batch)
            losses.append(float(metrics["loss"]))
        after = jax.device_get(state.params)
    return before, after, losses


@pytest.mark.slow
def test_the_base_stays_to_the_bit_and_blocks_that_are_no_targets_gain_nothing():
    program = program_of(**{"lora.targets": ("/block_1/attention/",)})
    before, after, _ = two_steps(program)
    before, after = (dict(flatten_with_names(unstack_layers(tree))) for tree in (before, after))
    for name, value in before.items():
        moved = not np.array_equal(value, after[name])
        assert moved == (is_trained(name) and "/block_0/" not in name), name
    others = [name for name in before if name.startswith("lora/") and "/block_0/" in name]
    assert others and not any(after[name].any() for name in others if name.endswith("/b"))
    assert "1 of 2 frozen" in program.optimizer_summary


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False},
        {"sharding": "fsdp", "mesh.data": 1, "mesh.fsdp": 2},
        {"sharding": "tensor", "mesh.data": 1, "mesh.tensor": 2},
        {"sharding": "replicated"},
        {"micro_batch_size": 4},
    ],
    ids=str,
)
def test_every_layout_takes_the_same_steps(changes):
    start, after, losses = two_steps(program_of(2))
    _, found, same = two_steps(program_of(2, **changes), start)
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    for (name, x), (_, y) in zip(flatten_with_names(after), flatten_with_names(found), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"lora.targets": ("token_embedding",)},
            "config.lora.targets: 'token_embedding' matches no",
        ),
        ({"lora.targets": ()}, "config.lora.targets names no kernels"),
        ({"lora.trained": ("ln_finale",)}, "config.lora.trained: 'ln_finale' matches no parameter"),
        ({"init.checkpoint": ""}, "config.lora.rank = 2 adapts a model that has learned"),
    ],
)
def test_what_cannot_be_is_said_before_a_device_is_touched(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        program_of(**changes)
