"""Transformer: attention with a fused qkv, MLP, a stack that is scanned or unrolled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.array_types import Array, Bool, Float, Int
from clipjax.layers.activations import activation
from clipjax.layers.attention import attend
from clipjax.layers.dropout import Dropout
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.initializers import BLOCK_INITS, BlockInit, parameter
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.remat import (
    ATTENDED,
    HIDDEN,
    MIXED,
    QKV,
    check_remat,
    checkpoint_name,
    rematerialised,
    rematerialised_function,
)
from clipjax.layers.rotary import Rotary2D
from clipjax.layers.row_major import row_major


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What the blocks of a stack are made of.

    Attributes:
        depth: blocks of the stack, which some initialisers scale by.
        num_heads: heads; the head dimension is width / num_heads.
        mlp_dim: hidden width of the MLP.
        activation: a name of ACTIVATIONS.
        layer_norm_eps: of the layer normalisations.
        init_name: of the kernels and biases, a name of BLOCK_INITS.
        dropout: rate of both residual branches, when training.
        dtype: of the computation.
        norm_first: False for BERT's order, `norm(x + attention(x))`, then `norm(x + mlp(x))`.
        causal: a token attends to those before it and to itself.
        rotary: turns queries and keys by their places; None where positions are added alone.
        execution: how the blocks run.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float
    init_name: str = "torch"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    norm_first: bool = True
    causal: bool = False
    rotary: Rotary2D | None = None
    execution: Execution = PLAIN

    @classmethod
    def of(cls, tower: nn.Module, **others: Any) -> "BlockConfig":
        """Takes the fields that a tower has by the same names.

        Args:
            tower: module with the attributes above.
            **others: those that it has not.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        own = {name: getattr(tower, name) for name in names if hasattr(tower, name)}
        return cls(**own, **others)

    def inits(self, width: int) -> BlockInit:
        """The initialisers of a block whose tokens have `width` numbers."""
        return BLOCK_INITS[self.init_name](width, self.mlp_dim, self.depth)


Valid = Int[Array, " batch"] | Bool[Array, "batch length"] | None
Position = Int[Array, " batch"] | int | None


def token_at(
    x: Float[Array, "batch length width"], position: Int[Array, " batch"] | int
) -> Float[Array, "batch 1 width"]:
    """The token of each example at a position, or the only one that there is."""
    if x.shape[1] == 1:
        return x
    if isinstance(position, int):
        return x[:, position : position + 1 or None]
    return jnp.take_along_axis(x, position[:, None, None], axis=1)


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32 (arXiv:1706.03762)."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        valid: Valid = None,
        asking: Float[Array, "batch queries width"] | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Attends to all keys or to the `valid` ones, see `clipjax.layers.attention.attend`.

        Where tokens are `asking`, these do alone, and whatever the mask they see what is valid.
        """
        width, dtype, execution = x.shape[-1], self.config.dtype, self.config.execution
        inits, zeros = self.config.inits(width), nn.initializers.zeros
        heads, axes = (self.config.num_heads, width // self.config.num_heads), ("heads", "head_dim")
        kernel = parameter(
            self, "qkv_kernel", inits.qkv, ("embed", "qkv", *axes), (width, 3, *heads)
        )
        bias = parameter(self, "qkv_bias", zeros, ("qkv", *axes), (3, *heads))
        if asking is not None:
            query = execution.einsum("blw,whd->blhd", asking, kernel[:, 0].astype(dtype))
            query += bias[0].astype(dtype)
            key_value = execution.einsum("blw,wchd->blchd", x, kernel[:, 1:].astype(dtype))
            key_value = checkpoint_name(key_value + bias[1:].astype(dtype), QKV)
            mixed = checkpoint_name(attend(key_value, valid, query=query), MIXED)
        else:
            qkv = execution.einsum("blw,wchd->blchd", x, kernel.astype(dtype)) + bias.astype(dtype)
            if self.config.rotary is not None:
                qkv = self.config.rotary(qkv)
            mixed = attend(qkv, valid, is_causal=self.config.causal, execution=execution)
        kernel = parameter(self, "out_kernel", inits.out, (*axes, "embed"), (*heads, width))
        bias = parameter(self, "out_bias", zeros, ("embed",), (width,))
        out = execution.einsum("blhd,hdw->blw", mixed, kernel.astype(dtype))
        return out + bias.astype(dtype)


class Mlp(nn.Module):
    """`proj(activation(fc(x)))`."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Applies the two layers to the last dimension."""
        width = x.shape[-1]
        inits = self.config.inits(width)

        def dense(name: str, size: int, kernel: Any, bias: Any, axes: tuple[str, str]) -> nn.Dense:
            return nn.Dense(
                size,
                dtype=self.config.dtype,
                kernel_init=nn.with_logical_partitioning(kernel, axes),
                bias_init=nn.with_logical_partitioning(bias, axes[1:]),
                dot_general=self.config.execution.dot_general,
                name=name,
            )

        x = dense("fc", self.config.mlp_dim, inits.fc, inits.fc_bias, ("embed", "mlp"))(x)
        x = checkpoint_name(x, HIDDEN)
        x = activation(self.config.activation, lean=self.config.execution.lean)(x)
        return dense("proj", width, inits.proj, inits.proj_bias, ("mlp", "embed"))(x)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; BERT's has the norms after the sums."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        valid: Valid,
        example_ids: Int[Array, " batch"] | None,
        train: bool,
        position: Position = None,
    ) -> Float[Array, "batch given width"]:
        """Applies the block, where a `position` is given to give the token there alone.

        That token attends to all that is valid: a causal mask is said as `valid`.
        """
        config, norm_first = self.config, self.config.norm_first
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        if config.execution.row_major:
            x = row_major(x)
        attention, mlp = Attention(config, name="attention"), Mlp(config, name="mlp")
        lean = config.execution.lean
        ln_1 = LayerNorm(config.layer_norm_eps, lean, name="ln_1")
        ln_2 = LayerNorm(config.layer_norm_eps, lean, name="ln_2")
        before = ln_1(x) if norm_first else x
        if position is None:
            y = attention(before, valid)
        else:
            x = token_at(x, position)
            y = attention(before, valid, ln_1(x) if norm_first else x)
        x = x + Dropout(config.dropout)(y, example_ids, train)
        x = checkpoint_name(x if norm_first else ln_1(x), ATTENDED)
        y = mlp(ln_2(x) if norm_first else x)
        x = x + Dropout(config.dropout)(y, example_ids, train)
        x = x if norm_first else ln_2(x)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


class Transformer(nn.Module):
    """A stack of blocks.

    Attributes:
        config: of its blocks. Their parameters are stacked on a leading axis, `blocks/...`
            [depth, ...], or with `execution.apart` one subtree a block, `block_0/...`;
            `clipjax.models.layers_layout` turns one tree into the other.
    """

    config: BlockConfig

    def __post_init__(self) -> None:
        """Checks the choices."""
        super().__post_init__()
        check_remat(self.config.execution.remat)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        valid: Valid = None,
        *,
        example_ids: Int[Array, " batch"] | None = None,
        train: bool = False,
        keep_hidden: bool | int = False,
        position: Position = None,
    ) -> tuple[Float[Array, "batch given width"], Float[Array, "... batch length width"] | None]:
        """Returns the output and what `keep_hidden` asks for.

        Args:
            x: the tokens.
            valid: of them, see `Attention`.
            example_ids: key the dropout's draws.
            train: whether dropout draws.
            keep_hidden: True asks for the output of every block, `[depth, batch, length, width]`; a
                number from 1 to the depth for the output of that block, `[batch, length, width]`:
                a large tower's whole stack would not fit.
            position: of the one token of each example that is read of the output, None where others
                are. With `Execution.pooled_only` the output is that token, `[batch, 1, width]`,
                where no draw of dropout belongs to the others.
        """
        depth, execution = self.config.depth, self.config.execution
        if (
            position is not None
            and execution.pooled_only
            and keep_hidden is False
            and self.config.rotary is None
            and (valid is None or not self.config.causal)
            and not (train and self.config.dropout)
            and not self.is_initializing()
        ):
            return self._one_token(x, valid, position, train), None
        keeps_one = not isinstance(keep_hidden, bool)
        if keeps_one and not 1 <= keep_hidden <= depth:
            raise ValueError(f"keep_hidden = {keep_hidden}: the blocks are 1 to {depth}")
        unroll = min(execution.unroll or depth, depth)
        # Common subexpressions are not merged across iterations of a scan: the barrier that
        # prevents it is only needed where several blocks are in one.
        prevent_cse = execution.apart or unroll > 1
        block_class = rematerialised(
            Block, execution.remat, prevent_cse=prevent_cse, static_argnums=(4,)
        )
        if execution.apart:
            hidden = []
            for i in range(depth):
                x = block_class(self.config, name=f"block_{i}")(x, valid, example_ids, train)
                hidden.append(x)
            if keeps_one:
                return x, hidden[keep_hidden - 1]
            return x, jnp.stack(hidden) if keep_hidden else None

        def body(block: Any, carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array | None]:
            carry = block(carry, valid, example_ids, train)
            return carry, carry if keep_hidden else None

        def body_keeping_one(block: Any, carry: tuple, number: jax.Array) -> tuple[tuple, None]:
            x, kept = carry
            x = block(x, valid, example_ids, train)
            return (x, jnp.where(number == keep_hidden, x, kept)), None

        def scanned(body: Any) -> Any:
            return nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=depth,
                unroll=unroll,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )

        blocks = block_class(self.config, name="blocks")
        if keeps_one:
            numbers = jnp.arange(1, depth + 1)
            return scanned(body_keeping_one)(blocks, (x, jnp.zeros_like(x)), numbers)[0]
        return scanned(body)(blocks, x, None)

    def _one_token(
        self, x: jax.Array, valid: Valid, position: Int[Array, " batch"] | int, train: bool
    ) -> jax.Array:
        """One token behind the last block, which spares the others all but key and value."""
        depth, execution = self.config.depth, self.config.execution
        params = nn.unbox(self.variables["params"])
        block = Block(self.config, parent=None)

        def whole(own: Any, x: jax.Array) -> jax.Array:
            found: Any = block.apply({"params": own}, x, valid, None, train)
            return found

        def narrow(own: Any, x: jax.Array) -> jax.Array:
            seen = keys_up_to(position, x) if self.config.causal else valid
            found: Any = block.apply({"params": own}, x, seen, None, train, position)
            return found

        unroll = max(1, min(execution.unroll or depth, depth - 1))
        alone = execution.apart or unroll > 1  # see `prevent_cse` above
        whole = rematerialised_function(whole, execution.remat, prevent_cse=alone)
        narrow = rematerialised_function(narrow, execution.remat, prevent_cse=True)
        if execution.apart:
            for number in range(depth - 1):
                x = whole(params[f"block_{number}"], x)
            return narrow(params[f"block_{depth - 1}"], x)
        blocks = params["blocks"]
        if train:  # the gradient of a slice is stacked, of what is indexed it is summed up
            rest, last = _cut_last(blocks)
            x, _ = jax.lax.scan(lambda x, own: (whole(own, x), None), x, rest, unroll=unroll)
        else:  # and nothing is copied
            x, _ = jax.lax.scan(
                lambda x, number: (whole(jax.tree.map(lambda leaf: leaf[number], blocks), x), None),
                x,
                jnp.arange(depth - 1),
                unroll=unroll,
            )
            last = jax.tree.map(lambda leaf: leaf[-1], blocks)
        return narrow(last, x)


def _cut_last(blocks: Any) -> tuple[Any, Any]:
    """All but the last of a stack, and the last; one concatenation puts the gradients together."""
    leaves, structure = jax.tree.flatten(blocks)
    cut = [jax.lax.split(leaf, (len(leaf) - 1, 1)) for leaf in leaves]
    rest, last = [part[0] for part in cut], [part[1][0] for part in cut]
    return jax.tree.unflatten(structure, rest), jax.tree.unflatten(structure, last)


def keys_up_to(position: Int[Array, " batch"] | int, x: jax.Array) -> Int[Array, " batch"]:
    """How many tokens the one at a position sees under a causal mask."""
    if isinstance(position, int):
        position = position % x.shape[1]
    return jnp.broadcast_to(jnp.asarray(position + 1, jnp.int32), (x.shape[0],))
