"""Random draws that belong to an example, not to its place in a batch.

Every draw is keyed by (step key, module, example id). An example therefore draws the same noise
whatever micro-batch, device or host it lands on, which is what makes gradient caching exact.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Float, Int


def uniform_per_example(
    key: jax.Array, example_ids: Int[Array, " batch"], shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Draws U[0, 1) of the given shape for each example.

    Args:
        key: a typed PRNG key, the same for the whole batch.
        example_ids: [batch] int32, what tells the examples of a batch apart.
        shape: of one example's draw.
    """
    keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(example_ids)
    return jax.vmap(lambda one: jax.random.uniform(one, shape))(keys)


class Dropout(nn.Module):
    """Zeroes elements at `rate` and scales the others by 1/(1-rate) (arXiv:1207.0580)."""

    rate: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        example_ids: Int[Array, " batch"] | None,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Drops when training; `example_ids` None means the rows' own order."""
        if not train or self.rate == 0.0:
            return x
        ids = jnp.arange(x.shape[0]) if example_ids is None else example_ids
        kept = uniform_per_example(self.make_rng("dropout"), ids, x.shape[1:]) >= self.rate
        return jnp.where(kept, x / (1.0 - self.rate), 0).astype(x.dtype)
