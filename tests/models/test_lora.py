"""Differences of low rank against plain low-rank layers, and against peft's own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import inputs, model_and_params, tiny_spec

from clipjax import create_train_state, make_loss, make_train_step
from clipjax.models.layers_layout import unstack_layers
from clipjax.models.lora import (
    adapted_kernels,
    add_factors,
    check_factors,
    merged,
    merged_kernel,
    merged_on_host,
)
from clipjax.partitioning.boxes import unbox
from clipjax.trees import flatten_with_names, unflatten_names

RANK, SCALE = 3, 2.0
# A kernel of each kind, stacked and not; and how its parts are matrices, inputs by outputs.
KERNELS = {
    "image_projection/kernel": ((6, 5), {(): (6, 5)}),
    "text/block_1/attention/qkv_kernel": ((6, 3, 2, 4), {(0,): (6, 8), (2,): (6, 8)}),
    "text/blocks/attention/out_kernel": ((2, 2, 4, 6), {(1,): (8, 6)}),
    "text/blocks/attention/qkv_kernel": ((2, 6, 3, 2, 4), {(1, 2): (6, 8), (0, 1): (6, 8)}),
    "map_head/attention/kv_kernel": ((6, 2, 2, 4), {(1,): (6, 8)}),
    "map_head/attention/q_kernel": ((6, 2, 4), {(): (6, 8)}),
}


def part(name, array, place, side=None):
    """One matrix of a kernel or of a factor, inputs by outputs, cut out by hand."""
    stacked, own = "/blocks/" in name, place
    if stacked:
        array, own = array[place[0]], place[1:]
    fused = name.endswith(("qkv_kernel", "/kv_kernel"))
    if fused:
        array = array[own[0]] if side == "b" else array[:, own[0]]
    if side == "a":
        return array.reshape(-1, RANK)
    if side == "b":
        return array.reshape(RANK, -1)
    inputs_first = 2 if name.endswith("out_kernel") else 1
    return array.reshape(int(np.prod(array.shape[:inputs_first])), -1)


@pytest.mark.parametrize("name", KERNELS)
def test_a_difference_is_that_of_peft(name):
    """`weight + lora_alpha / r * lora_B @ lora_A`, peft's weight being outputs by inputs."""
    shape, parts = KERNELS[name]
    kernel = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    tree = {"params": unflatten_names({name: jnp.asarray(kernel)})}
    tree = unbox(add_factors(tree, jax.random.key(0), RANK, {name}.__contains__))
    factors = dict(flatten_with_names(tree["params"]["lora"]))
    a, b = (np.asarray(factors[f"{name}/{side}"]) for side in "ab")
    inputs_of = next(iter(parts.values()))[0]
    assert np.abs(a).max() <= 1 / np.sqrt(inputs_of) and np.abs(a).mean() > 0.3 / inputs_of**0.5
    assert not b.any() and a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(merged_kernel(name, kernel, a, b, SCALE), kernel)
    b = np.random.default_rng(2).standard_normal(b.shape).astype(np.float32)
    found = merged_kernel(name, kernel, a, b, SCALE)
    for place, sizes in parts.items():
        weight, lora_a, lora_b = (
            part(name, x, place, side).T for x, side in ((kernel, None), (a, "a"), (b, "b"))
        )
        assert weight.shape == sizes[::-1] and lora_a.shape == (RANK, sizes[0])
        wanted = weight + SCALE * lora_b @ lora_a
        np.testing.assert_allclose(part(name, found, place).T, wanted, rtol=1e-5, atol=1e-6)
        wrong = weight + SCALE / RANK * lora_b @ lora_a  # the rank is in the scale already
        assert not np.allclose(part(name, found, place).T, wrong, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def adapted():
    """A tiny model, its parameters with factors that are not zero, and those without."""
    spec = tiny_spec()
    model, base = model_and_params(spec)
    shapes = {name: leaf.shape for name, leaf in flatten_with_names(base)}
    names = adapted_kernels(("/blocks/", "^text_projection"), shapes)
    assert len(names) == 9  # four kernels of the blocks of either tower
    params = unbox(add_factors({"params": base}, jax.random.key(1), RANK, names.__contains__))
    params = params["params"]
    start = params
    random = np.random.default_rng(3)
    noise = jax.tree.map(lambda x: 0.1 * random.standard_normal(x.shape), params["lora"])
    params = {**params, "lora": jax.tree.map(lambda x, n: x + jnp.float32(n), start["lora"], noise)}
    return spec, model, base, start, params


def test_a_start_is_the_base_to_the_bit(adapted):
    _, _, base, start, params = adapted
    for tree in (merged(start, SCALE), merged_on_host(start, SCALE)):
        for (name, before), (_, after) in zip(
            flatten_with_names(base), flatten_with_names(tree), strict=True
        ):
            np.testing.assert_array_equal(before, after, err_msg=name)
    exact, quick = (dict(flatten_with_names(f(params, SCALE))) for f in (merged_on_host, merged))
    for name, leaf in exact.items():
        np.testing.assert_allclose(quick[name], leaf, rtol=1e-5, atol=1e-6)
    kernel = "text_encoder/transformer/blocks/mlp/fc/kernel"
    assert not np.allclose(exact[kernel], dict(flatten_with_names(base))[kernel], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_gradients_are_those_of_the_chain_rule(adapted, num_micro_batches):
    """The step's own, by SGD, against the dense gradient of the merged kernels times a factor."""
    spec, model, _, _, params = adapted
    images, tokens = inputs(spec, 4)
    objective, tx = make_loss("clip"), optax.sgd(1.0)

    def loss_of(dense):
        out = model.apply({"params": dense}, images, tokens, train=True)
        return objective(out.image_embeds, out.text_embeds, out.logit_scale, None)[0]

    loss, dense = jax.value_and_grad(loss_of)(merged(params, SCALE))
    dense = dict(flatten_with_names(dense))
    step = make_train_step(
        model.apply,
        objective,
        tx,
        frozen=lambda name: not name.startswith("lora/"),
        merge=lambda tree: merged(tree, SCALE),
        num_micro_batches=num_micro_batches,
    )
    state = create_train_state({"params": params}, tx)
    after, metrics = jax.jit(step)(state, {"image": images, "text": tokens})
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    before, after = (dict(flatten_with_names(tree)) for tree in (params, after.params))
    for name, value in before.items():
        change = np.asarray(value) - np.asarray(after[name])
        if not name.startswith("lora/"):
            assert not change.any(), name
            continue
        kernel, side = name.removeprefix("lora/").rpartition("/")[::2]
        if not kernel.endswith("fc/kernel"):
            continue
        a, b = (np.asarray(before[f"lora/{kernel}/{x}"], np.float64) for x in "ab")
        of_kernel = np.asarray(dense[kernel], np.float64)
        for layer in range(len(of_kernel)):
            if side == "a":
                wanted = SCALE * of_kernel[layer] @ b[layer].T
            else:
                wanted = SCALE * a[layer].T @ of_kernel[layer]
            assert np.abs(wanted).max() > 1e-4
            np.testing.assert_allclose(change[layer], wanted, rtol=2e-3, atol=2e-6)


def test_a_layer_with_factors_is_the_merged_layer():
    """Forward and gradient of `x W + scale (x A) B`, by hand in NumPy."""
    random = np.random.default_rng(0)
    x, w, a, b, dy = (
        random.standard_normal(shape) for shape in ((7, 6), (6, 5), (6, RANK), (RANK, 5), (7, 5))
    )

    def forward(lora):
        tree = {"layer": {"kernel": jnp.float32(w)}, "lora": {"layer": {"kernel": lora}}}
        return jnp.float32(x) @ merged(tree, SCALE)["layer"]["kernel"]

    out, vjp = jax.vjp(forward, {"a": jnp.float32(a), "b": jnp.float32(b)})
    (found,) = vjp(jnp.float32(dy))
    np.testing.assert_allclose(out, x @ w + SCALE * (x @ a) @ b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["a"], SCALE * x.T @ (dy @ b.T), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["b"], SCALE * (x @ a).T @ dy, rtol=1e-4, atol=1e-4)


def test_patterns_name_kernels_stacked_or_apart(adapted):
    _, _, base, _, _ = adapted
    stacked, apart = (
        {name: leaf.shape for name, leaf in flatten_with_names(tree)}
        for tree in (base, unstack_layers(base))
    )
    # Of a stack all blocks have factors, or none has: it is one array.
    for shapes in (stacked, apart):
        found = adapted_kernels(("image_.*/block_1/attention/",), shapes)
        assert len(found) == 2 * (1 if shapes is stacked else 2)
        assert all("image_" in name and "attention" in name for name in found)
    for pattern in ("token_embedding", "patch_kernel", "ln_1", "/block_7/"):
        with pytest.raises(ValueError, match="matches no kernel that is a matrix"):
            adapted_kernels((pattern,), stacked)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"w/kernel/a": (6, 3)}, "the factor w/kernel/b is None"),
        ({"w/kernel/a": (6, 4), "w/kernel/b": (4, 5)}, r"w/kernel/a is \(6, 4\); that of rank 3"),
        ({"w/kernel/a": (6, 3), "w/kernel/b": (3, 6)}, r"of a kernel \(6, 5\) is \(3, 5\)"),
        ({"v/kernel/a": (6, 3), "v/kernel/b": (3, 5)}, "of v/kernel, which is no kernel here"),
        ({"w/bias/a": (6, 3), "w/bias/b": (3, 5)}, "of w/bias, which is no kernel here"),
        (
            {"w/kernel/a": (6, 3), "w/kernel/b": (3, 5), "w/kernel/c": ()},
            "w/kernel/c is no factor",
        ),
    ],
)
def test_factors_that_fit_no_kernel_are_named(factors, words):
    with pytest.raises(ValueError, match=words):
        check_factors(factors, {"w/kernel": (6, 5), "w/bias": (5,)}, RANK)
