"""The float64 oracle of the losses and the problems they are compared on."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make_problem(batch=48, embed=16, *, scale=14.0, bias=-3.0, noise=0.3, dtype=jnp.float32):
    """Image and text embeddings with hard negatives, log scale, bias."""
    rng = np.random.default_rng(batch * 1000 + embed)
    image = _unit(rng.normal(size=(batch, embed)))
    text = _unit(image + noise * rng.normal(size=(batch, embed)))
    return (
        jnp.asarray(image, dtype),
        jnp.asarray(text, dtype),
        jnp.float32(np.log(scale)),
        jnp.float32(bias),
    )


def reference(name, image, text, logit_scale, logit_bias):
    """Loss, metrics and gradients in float64 NumPy, written from the formulas."""
    x, y = (np.asarray(a).astype(np.float64) for a in (image, text))
    batch, scale = len(x), np.exp(np.float64(logit_scale))
    cosine = x @ y.T
    eye = np.eye(batch)
    if name == "clip":
        logits = scale * cosine

        def log_sum_exp(axis):
            top = logits.max(axis, keepdims=True)
            return top + np.log(np.exp(logits - top).sum(axis, keepdims=True))

        rows, columns = log_sum_exp(1), log_sum_exp(0)
        loss = np.mean((rows[:, 0] + columns[0]) / 2 - np.diag(logits))
        weights = (np.exp(logits - rows) + np.exp(logits - columns)) / 2 - eye
        d_bias = 0.0
    else:
        logits = scale * cosine + np.float64(logit_bias)
        loss = np.logaddexp(0, np.where(eye > 0, -logits, logits)).sum() / batch
        weights = 1 / (1 + np.exp(-logits)) - eye
        d_bias = weights.sum() / batch
    weights = weights / batch
    gradients = (
        scale * weights @ y,
        scale * weights.T @ x,
        (weights * scale * cosine).sum(),
        d_bias,
    )
    negatives = np.where(eye > 0, -np.inf, cosine)
    positives = np.diag(cosine)
    metrics = {
        "image_to_text_top1": np.mean(positives > negatives.max(1)),
        "text_to_image_top1": np.mean(positives > negatives.max(0)),
        "positive_cosine": positives.mean(),
        "negative_cosine": (cosine.sum() - positives.sum()) / max(batch * (batch - 1), 1),
        "logit_scale": scale,
    }
    return loss, metrics, gradients


def run(loss_fn, problem, mesh=None):
    """Loss, metrics and gradients of `loss_fn` under jit, on `mesh` if there is one."""
    image, text, logit_scale, logit_bias = problem
    if mesh is not None:
        axes = tuple(a for a in ("data", "fsdp") if a in mesh.axis_names)
        sharding = NamedSharding(mesh, PartitionSpec(axes))
        image, text = jax.device_put((image, text), sharding)
    with jax.default_matmul_precision("highest"):
        step = jax.jit(jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True))
        (loss, metrics), gradients = step(image, text, logit_scale, logit_bias)
    return loss, metrics, gradients


def errors(found, expected):
    """Relative error of the loss; max|d|/max|g| of each gradient (absolute where g is zero)."""
    relative = abs(float(found[0]) - expected[0]) / abs(expected[0])
    of_gradients = [
        np.max(np.abs(np.asarray(a).astype(np.float64) - b)) / (np.max(np.abs(b)) or 1.0)
        for a, b in zip(found[2], expected[2], strict=True)
    ]
    return relative, of_gradients


def make_mesh(*shape):
    """A mesh of the first devices: axes data, fsdp, tensor as far as `shape` goes."""
    devices = jax.devices()[: int(np.prod(shape))]
    axes = AXES[: len(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=devices)


class Oracle:
    """What the tests of this folder share."""

    problem = staticmethod(make_problem)
    reference = staticmethod(reference)
    run = staticmethod(run)
    errors = staticmethod(errors)
    mesh = staticmethod(make_mesh)

    @staticmethod
    def assert_equal(found, expected, *, loss=1e-6, gradients=1e-5):
        """The bars of the losses: relative loss error, max|d|/max|g| of every gradient."""
        of_loss, of_gradients = errors(found, expected)
        assert of_loss <= loss
        assert max(of_gradients) <= gradients, of_gradients
        assert found[1].keys() == expected[1].keys()
        for key, value in expected[1].items():
            np.testing.assert_allclose(found[1][key], value, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.fixture(scope="session")
def oracle():
    return Oracle


@pytest.fixture(scope="session")
def open_clip_golden():
    """(case, loss name) -> problem and (loss, None, gradients) of open_clip in float64."""
    path = Path(__file__).parents[1] / "golden" / "losses" / "open_clip.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)

    def load(case, name):
        parts = ("image", "text", "scale", "bias")
        gradients = tuple(arrays[f"{case}/{name}/d_{part}"] for part in parts)
        # The gradient of a constant shift under a softmax: rounding noise of 1e-17 in torch.
        gradients = gradients if name == "siglip" else (*gradients[:3], np.zeros(()))
        problem = tuple(jnp.asarray(arrays[f"{case}/{part}"]) for part in parts)
        return problem, (float(arrays[f"{case}/{name}/loss"]), None, gradients)

    return load
