"""Convolutions of one pixel as products: the same values and gradients as XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.layers.convolution import convolve_pixels
from clipjax.layers.execution import Execution
from clipjax.models.modified_resnet import ModifiedResNet


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_a_convolution(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 6))
    layers = {
        name: nn.Conv(8, (1, 1), use_bias=False, dtype=dtype, conv_general_dilated=convolve)
        for name, convolve in {"plain": None, "product": convolve_pixels}.items()
    }
    params = layers["plain"].init(jax.random.key(1), x)

    def run(name, params, x):
        def loss(params, x):
            y = layers[name].apply(params, x)
            return jnp.sin(y.astype(jnp.float32)).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return y, gradients

    plain, product = run("plain", params, x), run("product", params, x)
    assert jax.tree.map(lambda y: (y.shape, y.dtype), plain) == jax.tree.map(
        lambda y: (y.shape, y.dtype), product
    )
    bar = 2e-6 if dtype == "float32" else 4e-2
    worst = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), plain, product)
    assert max(jax.tree.leaves(worst)) <= bar
    # The control: another kernel is another result.
    other, _ = run("product", jax.tree.map(lambda w: 1.1 * w, params), x)
    assert np.abs(np.asarray(other - plain[0], np.float32)).max() > 2 * bar


def test_a_resnet_takes_them_on_a_cpu_alone():
    images = jnp.zeros((1, 32, 32, 3))

    def count(platform):
        tower = ModifiedResNet(32, (1, 1, 1, 1), 8, 4, 16, execution=Execution(platform=platform))
        variables = jax.eval_shape(tower.init, jax.random.key(0), images)
        text = str(jax.make_jaxpr(lambda v: tower.apply(v, images).pooled)(variables))
        return text.count("conv_general_dilated[")

    # Stem 3, four bottlenecks of one 3 x 3; and on the others two of one pixel and four shortcuts.
    counts = {platform: count(platform) for platform in ("cpu", "gpu", "tpu")}
    assert counts == {"cpu": 3 + 4, "gpu": 3 + 4 * 4, "tpu": 3 + 4 * 4}
