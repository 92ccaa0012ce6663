"""Ranges that the towers share; each tower's own are beside its fields."""

import jax

from clipjax.layers.activations import ACTIVATIONS
from clipjax.layers.initializers import BLOCK_INITS
from clipjax.ranges import RATE, Choice, FieldError, Number, Only, Rule, whole

# A width, a depth or a vocabulary beyond this was mistyped, and no shape would hold it.
_SIZE = whole(1, 2**24)

TRANSFORMER: dict[str, Rule] = {
    "width": _SIZE,
    "depth": whole(1, 4096),
    "num_heads": _SIZE,
    "mlp_dim": _SIZE,
    "activation": Choice(tuple(ACTIVATIONS)),
    "layer_norm_eps": Number(1e-30, 1),
    "init_name": Choice(tuple(BLOCK_INITS)),
    "dropout": RATE,
}
VISION: dict[str, Rule] = {"patch_size": _SIZE, "patch_dropout": RATE}
TEXT: dict[str, Rule] = {"vocab_size": _SIZE, "context_length": _SIZE}

# Of towers without patches, or whose images differ in their number of patches.
NO_PATCHES_OUT = Only(0, "no patches are left out of this tower's images")


def check_texts(tokens: jax.Array, context_length: int) -> None:
    """Raises ValueError unless token ids `[batch, length]` have the model's length."""
    if tokens.shape[1] != context_length:
        raise ValueError(
            f"texts are {tokens.shape[1]} tokens, the model takes {context_length}; "
            "set context_length"
        )


def check_heads(width: int, num_heads: int) -> None:
    """Raises FieldError unless the heads share the width evenly."""
    if width % num_heads:
        raise FieldError(f"width = {width} does not divide by num_heads = {num_heads}")


def check_patches(patch_size: int, image_size: int) -> None:
    """Raises FieldError if a patch is larger than the image."""
    if patch_size > image_size:
        raise FieldError(
            f"patch_size = {patch_size}: a patch is not larger than the image, "
            f"{image_size} pixels (image_size)"
        )
