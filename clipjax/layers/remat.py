"""What the backward pass is left of a block, and what it computes again (arXiv:1604.06174).

A block names its values as it makes them; a row of the table says which of them are kept. Norms and
activations are never kept by name: they cost no product.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

QKV = "qkv"  # queries, keys and values: three times the width
MIXED = "mixed"  # what attention gives: the width; and the statistics of a kernel's softmax
ATTENDED = "attended"  # the sum with the attention's branch: the width
HIDDEN = "hidden"  # the MLP's first product: mlp_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to recompute.

    Attributes:
        policy: of `jax.checkpoint`; None keeps everything.
        kept: elements that a block leaves per token, in units of (width, mlp_dim), its input
            among them.
        lean_kept: the same where attention is a kernel, and norms and activations keep their input.
        recomputed: forward FLOPs of a block that are computed again, in units of (width^2, width
            mlp_dim, width tokens) a token.
        lean_recomputed: the same where attention is a kernel, whose backward pass has the scores
            under every row.
    """

    policy: Callable[..., Any] | None
    kept: tuple[float, float]
    lean_kept: tuple[float, float]
    recomputed: tuple[float, float, float]
    lean_recomputed: tuple[float, float, float]


def _keeping(*names: str) -> Callable[..., bool]:
    by_name = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive: Any, *inputs: Any, **params: Any) -> bool:
        # A kernel's output is kept with its statistics, else it would run again to have these.
        if MIXED in names and primitive.name.startswith("dot_product_attention_fwd"):
            return True
        return bool(by_name(primitive, *inputs, **params))

    return policy


# The most kept, and the least computed again, first.
REMAT = {
    "none": Row(
        policy=None,
        kept=(9.0, 3.0),
        lean_kept=(8.0, 2.0),
        recomputed=(0.0, 0.0, 0.0),
        lean_recomputed=(0.0, 0.0, 0.0),
    ),
    "names": Row(
        policy=_keeping(QKV, MIXED, ATTENDED, HIDDEN),
        kept=(6.0, 1.0),
        lean_kept=(6.0, 1.0),
        recomputed=(0.0, 0.0, 2.0),
        lean_recomputed=(0.0, 0.0, 0.0),
    ),
    # Keeps the products without a batch dimension, so not the scores.
    "dots": Row(
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        kept=(5.0, 1.0),
        lean_kept=(5.0, 1.0),
        recomputed=(0.0, 0.0, 4.0),
        lean_recomputed=(0.0, 0.0, 4.0),
    ),
    "attention": Row(
        policy=_keeping(QKV, MIXED, ATTENDED),
        kept=(6.0, 0.0),
        lean_kept=(6.0, 0.0),
        recomputed=(0.0, 2.0, 2.0),
        lean_recomputed=(0.0, 2.0, 0.0),
    ),
    "full": Row(
        policy=jax.checkpoint_policies.nothing_saveable,
        kept=(1.0, 0.0),
        lean_kept=(1.0, 0.0),
        recomputed=(8.0, 2.0, 4.0),
        lean_recomputed=(8.0, 2.0, 4.0),
    ),
}


def rematerialised(block: Any, remat: str, **options: Any) -> Any:
    """A block's class that recomputes as a row says.

    Args:
        block: a flax module's class.
        remat: the name of a row.
        **options: of `flax.linen.remat`.
    """
    policy = REMAT[remat].policy
    return block if policy is None else nn.remat(block, policy=policy, **options)


def rematerialised_function(
    function: Callable[..., Any], remat: str, *, prevent_cse: bool
) -> Callable[..., Any]:
    """The same of a function of arrays; `rematerialised` is for modules.

    Args:
        function: of arrays.
        remat: the name of a row.
        prevent_cse: of `jax.checkpoint`.
    """
    policy = REMAT[remat].policy
    if policy is None:
        return function
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


def check_remat(remat: str) -> None:
    """Refuses what is no row.

    Raises:
        ValueError: names the rows.
    """
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r} is unknown; allowed are {', '.join(REMAT)}")


__all__ = [
    "ATTENDED", "HIDDEN", "MIXED", "QKV", "REMAT", "Row", "check_remat", "checkpoint_name",
    "rematerialised", "rematerialised_function",
]  # fmt: skip
