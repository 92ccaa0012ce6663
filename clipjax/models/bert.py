"""BERT and XLM-RoBERTa as text towers (arXiv:1810.04805, arXiv:1911.02116)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.layers.dropout import Dropout
from clipjax.layers.execution import PLAIN, Execution
from clipjax.layers.initializers import parameter
from clipjax.layers.normalization import LayerNorm
from clipjax.layers.pooler import Pooler
from clipjax.layers.transformer import BlockConfig, Transformer
from clipjax.models.features import TextFeatures
from clipjax.models.tower_ranges import TEXT, TRANSFORMER, check_heads, check_texts
from clipjax.ranges import Choice, FieldError, Rule, check_fields, whole


class Bert(nn.Module):
    """Word, position and segment embeddings, blocks with the norms after the sums, pooling.

    Padding is masked: no token attends to it. Texts are one segment, padded at the end.

    Attributes:
        vocab_size: rows of the word embedding.
        context_length: tokens of a text, padding included.
        width: of the tokens.
        depth, num_heads, mlp_dim, activation, layer_norm_eps: of the blocks, see `BlockConfig`.
        pad_id: id of padding.
        num_positions: rows of the position embedding, of which `context_length` are used.
        position_offset: row of the first token: 0 in BERT, pad_id + 1 in RoBERTa.
        num_segments: rows of the segment embedding, of which the first is used.
        pooling: `cls` (the first token), `pooler` (the first token behind BERT's dense layer with
            tanh) or `mean` (over the tokens that are not padding).
        dropout: rate of the embeddings and the residual branches, when training.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_id: int = 0
    num_positions: int = 512
    position_offset: int = 0
    num_segments: int = 2
    pooling: str = "cls"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    execution: Execution = PLAIN

    ranges: ClassVar[Mapping[str, Rule]] = {
        **{name: rule for name, rule in TRANSFORMER.items() if name != "init_name"},
        **TEXT,
        "pad_id": whole(0),
        "num_positions": whole(),
        "position_offset": whole(0),
        "num_segments": whole(),
        "pooling": Choice(("cls", "mean", "pooler")),
    }

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        check_fields(self, self.ranges)
        check_heads(self.width, self.num_heads)
        if self.pad_id >= self.vocab_size:
            raise FieldError(
                f"pad_id = {self.pad_id}: the ids are 0 to {self.vocab_size - 1} (vocab_size)"
            )
        if self.position_offset + self.context_length > self.num_positions:
            raise FieldError(
                f"context_length = {self.context_length} from row {self.position_offset} does not "
                f"fit num_positions = {self.num_positions}"
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
        words = self._embedding("token_embedding", "vocab", self.vocab_size)
        # All rows of the published table are kept, so that weights go in and out unchanged.
        positions = self._embedding("position_embedding", "position", self.num_positions)
        segments = self._embedding("segment_embedding", None, self.num_segments)
        start = self.position_offset
        x = words[tokens] + segments[0] + positions[start : start + self.context_length]
        norm = LayerNorm(self.layer_norm_eps, self.execution.lean, name="ln_embedding")
        x = norm(x).astype(self.dtype)
        x = Dropout(self.dropout)(x, example_ids, train)
        inside = jnp.not_equal(tokens, self.pad_id)
        x, hidden = Transformer(
            BlockConfig.of(self, init_name="bert", norm_first=False), name="transformer"
        )(
            x,
            inside,
            example_ids=example_ids,
            train=train,
            keep_hidden=keep_hidden,
            position=0 if self.pools_one_token else None,
        )
        pooled = x[:, 0]
        if self.pooling == "pooler":
            pooled = Pooler(self.dtype, name="pooler")(pooled)
        elif self.pooling == "mean":
            weights = inside[:, :, None].astype(x.dtype)
            # A text of padding only gives zeros, not a division by zero.
            pooled = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
        return TextFeatures(pooled, x, hidden)

    @property
    def pools_one_token(self) -> bool:
        """Whether one token of each text is read of the last block's; of a tower of one's own not.

        As of `clipjax.models.text_transformer.TextTransformer`.
        """
        return type(self) is Bert and self.pooling != "mean"

    def _embedding(self, name: str, axis: str | None, rows: int) -> jax.Array:
        init = nn.initializers.normal(0.02)
        return parameter(self, name, init, (axis, "embed"), (rows, self.width))
