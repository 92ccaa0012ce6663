"""Text transformers: causal for CLIP (arXiv:2103.00020), bidirectional for SigLIP."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.initializers import parameter
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.transformer import BlockConfig, Position, Transformer, token_at
from clipjax.models.features import TextFeatures
from clipjax.models.tower_ranges import TEXT, TRANSFORMER, check_heads, check_texts
from clipjax.ranges import Choice, FieldError, Optional, Rule, check_fields, whole


def _embedding_deviations(init_name: str, width: int) -> tuple[float, float]:
    """Deviations of the token and position embeddings that go with a block initialisation."""
    return (0.02, 0.01) if init_name == "openai_text" else (width**-0.5, width**-0.5)


class TextTransformer(nn.Module):
    """Token and position embeddings, pre-norm blocks under a causal mask, pooling.

    Attributes:
        vocab_size: rows of the token embedding.
        context_length: tokens of a text, padding included.
        width: of the tokens.
        depth, num_heads, mlp_dim, activation, layer_norm_eps: of the blocks, see `BlockConfig`.
        pooling: `eot` (the row of the largest token id, which is the end-of-text token's), `last`
            (the last position, often padding) or `mean` (over the tokens up to the end of text).
        eot_id: id of the end-of-text token, where ids above it were added to the vocabulary; the
            end is the first of them. None: the largest id of the row.
        init_name: of the blocks, a name of BLOCK_INITS: openai_text or xavier (big_vision).
        dropout: rate of the residual branches, when training.
        table_length: rows of the position table, of which the first `context_length` are used (a
            stage of training on shorter texts). None: `context_length`.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float = 1e-5
    pooling: str = "eot"
    eot_id: int | None = None
    init_name: str = "openai_text"
    dropout: float = 0.0
    table_length: int | None = None
    dtype: Any = jnp.float32
    execution: Execution = PLAIN

    causal: ClassVar[bool] = True

    ranges: ClassVar[Mapping[str, Rule]] = {
        **TRANSFORMER,
        **TEXT,
        "pooling": Choice(("eot", "last", "mean")),
        "eot_id": Optional(whole(0), "the largest id"),
        "table_length": Optional(whole(), "context_length"),
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        check_heads(self.width, self.num_heads)
        if self.table_length is not None and self.table_length < self.context_length:
            raise FieldError(
                f"context_length = {self.context_length} exceeds the {self.table_length} rows of "
                "the position table"
            )

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool = False,
        example_ids: jax.Array | None = None,
        keep_hidden: bool | int = False,
    ) -> TextFeatures:
        """Encodes token ids [batch, context_length] of int32."""
        check_texts(tokens, self.context_length)
        inits = [
            nn.initializers.normal(deviation)
            for deviation in _embedding_deviations(self.init_name, self.width)
        ]
        shape = (self.vocab_size, self.width)
        embedding = parameter(self, "token_embedding", inits[0], ("vocab", "embed"), shape)
        shape = (self.table_length or self.context_length, self.width)
        positions = parameter(self, "position_embedding", inits[1], ("position", "embed"), shape)
        x = (embedding[tokens] + positions[: self.context_length]).astype(self.dtype)
        position = self._position(tokens)
        x, hidden = Transformer(BlockConfig.of(self), name="transformer")(
            x,
            example_ids=example_ids,
            train=train,
            keep_hidden=keep_hidden,
            position=position if self.pools_one_token else None,
        )
        x = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_final")(x)
        if position is not None:
            return TextFeatures(token_at(x, position)[:, 0], x, hidden)
        inside = (jnp.arange(x.shape[1]) <= self.ends(tokens)[:, None]).astype(x.dtype)
        pooled = (x * inside[:, :, None]).sum(axis=1) / inside.sum(axis=1, keepdims=True)
        return TextFeatures(pooled, x, hidden)

    @property
    def pools_one_token(self) -> bool:
        """Whether one token of each text is read of the last block's.

        A tower that inherits from this one may read the others, and says for itself if not.
        """
        own = type(self) in (TextTransformer, BidirectionalTransformer)
        return own and self.pooling != "mean"

    @property
    def trims_behind_end_of_text(self) -> bool:
        """Whether the pooled row is the same without the positions behind every text's end.

        A tower that inherits from this one may read them, and says for itself that it does not.
        """
        return type(self) is TextTransformer and self.pooling != "last"

    def for_shorter_texts(self, context_length: int) -> "TextTransformer":
        """The same tower, of the same parameters, for texts of fewer tokens."""
        table_length = self.table_length or self.context_length
        return self.clone(context_length=context_length, table_length=table_length)

    def ends(self, tokens: Any) -> Any:
        """Where each text ends: of ids `[batch, length]` the position `[batch]`, as `eot_id` says.

        The first such position, so that what is cut off behind all of them moves none.
        """
        ends = tokens if self.eot_id is None else tokens == self.eot_id
        return ends.argmax(axis=1)

    def _position(self, tokens: jax.Array) -> Position:
        """Of the one token that is pooled; None for a mean."""
        if self.pooling == "eot":
            return jnp.asarray(self.ends(tokens))
        return {"first": 0, "last": -1, "mean": None}[self.pooling]


class BidirectionalTransformer(TextTransformer):
    """The text transformer without a mask: every token, padding included, sees every other.

    So a text has to be padded as in training: to the full length, with the same id.

    Attributes:
        pooling: also `first`, the first position (FLIP).

    Reference: arXiv:2303.15343 (SigLIP).
    """

    causal: ClassVar[bool] = False

    ranges: ClassVar[Mapping[str, Rule]] = {
        **TextTransformer.ranges,
        "pooling": Choice(("eot", "first", "last", "mean")),
    }
