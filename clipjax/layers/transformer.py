"""Transformer: attention with a fused qkv, MLP, a stack that is scanned or unrolled."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Bool, Float, Int
from clipjax.layers.activations import activation
from clipjax.layers.dropout import Dropout
from clipjax.layers.initializers import BLOCK_INITS
from clipjax.layers.normalization import LayerNorm

# What the backward pass keeps of a block; the rest is computed again (arXiv:1604.06174).
# "dots" keeps the outputs of the matrix products that have no batch dimension: five times less
# memory than "none" for two per cent more FLOPs in a ViT-B/16.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32 (arXiv:1706.03762).

    Attributes:
        num_heads: heads; the head dimension is width / num_heads.
        init_name: qkv and output kernels' initialisers, as a name of BLOCK_INITS.
        depth: blocks of the stack, which some initialisers scale by.
        dtype: of the computation.
    """

    num_heads: int
    mlp_dim: int
    depth: int
    init_name: str
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "..."] | None
    ) -> Float[Array, "batch length width"]:
        """Attends; `mask` broadcasts to [batch, heads, length, length], True where allowed."""
        width = x.shape[-1]
        inits = BLOCK_INITS[self.init_name](width, self.mlp_dim, self.depth)
        head_dim = width // self.num_heads
        kernel = self.param(
            "qkv_kernel",
            nn.with_logical_partitioning(inits.qkv, ("embed", "qkv", "heads", "head_dim")),
            (width, 3, self.num_heads, head_dim),
            jnp.float32,
        )
        bias = self.param(
            "qkv_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("qkv", "heads", "head_dim")),
            (3, self.num_heads, head_dim),
            jnp.float32,
        )
        qkv = jnp.einsum("blw,wchd->blchd", x, kernel.astype(self.dtype)) + bias.astype(self.dtype)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
        out = self.param(
            "out_kernel",
            nn.with_logical_partitioning(inits.out, ("heads", "head_dim", "embed")),
            (self.num_heads, head_dim, width),
            jnp.float32,
        )
        out_bias = self.param(
            "out_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
            (width,),
            jnp.float32,
        )
        return jnp.einsum("blhd,hdw->blw", mixed, out.astype(self.dtype)) + out_bias.astype(
            self.dtype
        )


class Mlp(nn.Module):
    """`proj(activation(fc(x)))`.

    Attributes:
        mlp_dim: hidden width.
        activation: a name of ACTIVATIONS.
    """

    mlp_dim: int
    depth: int
    activation: str
    init_name: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Applies the two layers to the last dimension."""
        width = x.shape[-1]
        inits = BLOCK_INITS[self.init_name](width, self.mlp_dim, self.depth)

        def dense(name: str, size: int, kernel: Any, bias: Any, axes: tuple[str, str]) -> nn.Dense:
            return nn.Dense(
                size,
                dtype=self.dtype,
                kernel_init=nn.with_logical_partitioning(kernel, axes),
                bias_init=nn.with_logical_partitioning(bias, axes[1:]),
                name=name,
            )

        x = dense("fc", self.mlp_dim, inits.fc, inits.fc_bias, ("embed", "mlp"))(x)
        x = activation(self.activation)(x)
        return dense("proj", width, inits.proj, inits.proj_bias, ("mlp", "embed"))(x)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; BERT's has the norms after the sums.

    Attributes:
        dropout: rate of both residual branches, when training.
        norm_first: False for `norm(x + attention(x))`, then `norm(x + mlp(x))`.
    """

    num_heads: int
    mlp_dim: int
    depth: int
    activation: str
    layer_norm_eps: float
    init_name: str
    dropout: float
    dtype: Any
    norm_first: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "..."] | None,
        example_ids: Int[Array, " batch"] | None,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Applies the block."""
        common = {"mlp_dim": self.mlp_dim, "depth": self.depth, "init_name": self.init_name}
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        attention = Attention(self.num_heads, dtype=self.dtype, name="attention", **common)
        mlp = Mlp(activation=self.activation, dtype=self.dtype, name="mlp", **common)
        ln_1 = LayerNorm(self.layer_norm_eps, name="ln_1")
        ln_2 = LayerNorm(self.layer_norm_eps, name="ln_2")
        y = attention(ln_1(x) if self.norm_first else x, mask)
        x = x + Dropout(self.dropout)(y, example_ids, train)
        x = x if self.norm_first else ln_1(x)
        y = mlp(ln_2(x) if self.norm_first else x)
        x = x + Dropout(self.dropout)(y, example_ids, train)
        x = x if self.norm_first else ln_2(x)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


class Transformer(nn.Module):
    """A stack of blocks.

    Attributes:
        depth: blocks.
        scan: True stacks the parameters on a leading axis and compiles one block
            (`blocks/...` [depth, ...]); False unrolls (`block_0/...`, `block_1/...`).
            `clipjax.models.layers_layout` turns one tree into the other.
        remat: none | dots | full, a key of REMAT_POLICIES or none.
        norm_first: False for BERT's order; see Block.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float
    init_name: str = "torch"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    norm_first: bool = True

    def __post_init__(self) -> None:
        """Checks the choices."""
        super().__post_init__()
        if self.remat != "none" and self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"remat {self.remat!r} is unknown; allowed are none, {', '.join(REMAT_POLICIES)}"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "..."] | None = None,
        *,
        example_ids: Int[Array, " batch"] | None = None,
        train: bool = False,
        keep_hidden: bool | int = False,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "... batch length width"] | None]:
        """Returns the output, and what `keep_hidden` asks for.

        True asks for the output of every block, `[depth, batch, length, width]`; a number from 1 to
        the depth for the output of that block, `[batch, length, width]`: a large tower's whole
        stack would not fit.
        """
        keeps_one = not isinstance(keep_hidden, bool)
        if keeps_one and not 1 <= keep_hidden <= self.depth:
            raise ValueError(f"keep_hidden = {keep_hidden}: the blocks are 1 to {self.depth}")
        block_class: Any = Block
        if self.remat != "none":
            # Common subexpressions inside a scan's body are not merged across iterations, so the
            # barrier that prevents it is only needed when unrolled.
            block_class = nn.remat(
                Block,
                policy=REMAT_POLICIES[self.remat],
                prevent_cse=not self.scan,
                static_argnums=(4,),
            )
        fields = {
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "depth": self.depth,
            "activation": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "init_name": self.init_name,
            "dropout": self.dropout,
            "dtype": self.dtype,
            "norm_first": self.norm_first,
        }
        if not self.scan:
            hidden = []
            for i in range(self.depth):
                x = block_class(**fields, name=f"block_{i}")(x, mask, example_ids, train)
                hidden.append(x)
            if keeps_one:
                return x, hidden[keep_hidden - 1]
            return x, jnp.stack(hidden) if keep_hidden else None

        def body(block: Any, carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array | None]:
            carry = block(carry, mask, example_ids, train)
            return carry, carry if keep_hidden else None

        def body_keeping_one(block: Any, carry: tuple, number: jax.Array) -> tuple[tuple, None]:
            x, kept = carry
            x = block(x, mask, example_ids, train)
            return (x, jnp.where(number == keep_hidden, x, kept)), None

        def scanned(body: Any) -> Any:
            return nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )

        blocks = block_class(**fields, name="blocks")
        if keeps_one:
            numbers = jnp.arange(1, self.depth + 1)
            return scanned(body_keeping_one)(blocks, (x, jnp.zeros_like(x)), numbers)[0]
        return scanned(body)(blocks, x, None)
