"""How a tower runs on its devices: what no parameter, and no number beyond rounding, depends on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

ATTENTIONS = ("auto", "xla", "cudnn", "pallas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the layers of a tower are computed.

    Attributes:
        platform: of the devices, `cpu`, `gpu` or `tpu`. On a CPU every layer keeps the plain form.
        attention: of ATTENTIONS, see `clipjax.layers.attention.attend`.
        unroll: blocks in one iteration of the scan over a stack; 0 for all, which leaves no loop.
        apart: the parameters are one subtree a block, `block_0`, `block_1`, instead of a stack.
        row_major: the tokens lie in memory with the width innermost. Left free, XLA's GPU compiler
            puts the batch there, and norms and biases read across.
        remat: what the backward pass computes again, a row of `clipjax.layers.remat.REMAT`.
        pooled_only: a tower that pools one token computes no other in its last block; the tokens
            that it gives are that one. For embeddings, and for steps on GPUs and TPUs whose
            objective asks for no tokens (docs/performance.md).
        float32_products: products of bfloat16 are float32, then rounded. XLA's CPU backend has the
            matrix instructions of x86 (AMX) for this form alone. For embeddings, tokens on a CPU.
    """

    platform: str = "cpu"
    attention: str = "auto"
    unroll: int = 1
    apart: bool = False
    row_major: bool = False
    remat: str = "none"
    pooled_only: bool = False
    float32_products: bool = False

    @property
    def summary(self) -> str:
        """In words, for a log."""
        blocks = "unrolled" if self.apart or self.unroll == 0 else "scanned"
        if self.unroll > 1:
            blocks += f", {self.unroll} an iteration"
        return f"{blocks}; attention {self.attention}; remat {self.remat}"

    @property
    def lean(self) -> bool:
        """Whether norms and activations leave the backward pass their input alone."""
        return self.platform != "cpu"

    def einsum(self, equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """`jnp.einsum` of two arrays of one dtype, which the product has, too."""
        if not self.float32_products:
            return jnp.einsum(equation, x, kernel)
        product = jnp.einsum(equation, x, kernel, preferred_element_type=jnp.float32)
        return product.astype(x.dtype)

    @property
    def dot_general(self) -> Callable[..., jax.Array] | None:
        """The product of an `nn.Dense`; None is flax's own."""
        return _rounded_dot_general if self.float32_products else None


def _rounded_dot_general(x: jax.Array, *args: Any, **options: Any) -> jax.Array:
    options["preferred_element_type"] = jnp.float32
    return jax.lax.dot_general(x, *args, **options).astype(x.dtype)


PLAIN = Execution()
APART = Execution(apart=True)


def runtime_fields(execution: Execution) -> dict[str, Any]:
    """What a tower may have a field for, beside its spec; it is given those that it has."""
    return {
        "execution": execution,
        "remat": execution.remat,
        "scan_layers": not execution.apart,  # of a tower that was written for it
    }


def under_execution(tower: nn.Module, execution: Execution) -> Any:
    """The same tower, of the same parameters, run in another way."""
    given = runtime_fields(execution).items()
    return tower.clone(**{name: value for name, value in given if hasattr(tower, name)})
