"""Build a loss over global arrays from its name, a mesh and a layout."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AbstractMesh, Mesh

from clipjax.array_types import Array, Float
from clipjax.building import resolve
from clipjax.losses.clip import SoftmaxPairs, clip_loss
from clipjax.losses.equal_rows import Keys, equal_pairs, row_keys
from clipjax.losses.layouts import LAYOUTS, grid_shape
from clipjax.losses.metrics import pair_metrics
from clipjax.losses.pair_rule import PairRule
from clipjax.losses.placement import as_scalar, make_placement
from clipjax.losses.sharded import pair_loss
from clipjax.losses.siglip import SigmoidPairs, siglip_loss

LOSSES: dict[str, Callable] = {"clip": clip_loss, "siglip": siglip_loss}
"""Dense references: free functions of arrays."""

PAIR_RULES: dict[str, PairRule] = {"clip": SoftmaxPairs(), "siglip": SigmoidPairs()}
"""The tile-by-tile forms of losses; a loss without a row here runs dense only."""

LossFn = Callable[..., tuple[Array, dict[str, Array]]]

TILE_SIZES = {"cpu": 1024, "gpu": 4096, "tpu": 1024}
"""Longest edge of a tile by platform; docs/losses.md has what was measured and compiled."""
DTYPES = ("auto", "float32", "bfloat16")
POSITIVES = ("own", "equal_captions")
DENSE_MAX_BATCH = 512
RING_MIN_BYTES = 2 * 2**30


def choose_layout(batch_size: int, embed_dim: int, num_devices: int) -> str:
    """The layout that `layout="auto"` takes.

    `dense` for one device and a batch up to 512, where the matrix is small and tiling gains
    nothing; `gather` where the devices do not fold (2, and primes), since there the grid moves
    more bytes; `ring` where the blocks and gradients of the grid, `6 embed batch (1/p + 1/q)`
    bytes, pass 2 GiB; `grid` else. docs/losses.md has the measurements.

    Args:
        batch_size: global batch.
        embed_dim: width of an embedding.
        num_devices: devices that share the batch.

    Returns:
        "dense", "gather", "grid" or "ring".
    """
    p, q = grid_shape(num_devices)
    if num_devices == 1:
        return "dense" if batch_size <= DENSE_MAX_BATCH else "grid"
    if 6 * embed_dim * batch_size * (1 / p + 1 / q) > RING_MIN_BYTES:
        return "ring"
    return "gather" if p == 1 else "grid"


def make_loss(
    name: str | Callable[..., Array],
    *,
    mesh: Mesh | AbstractMesh | None = None,
    batch_axes: str | Sequence[str] | None = None,
    axis_name: str | Sequence[str] | None = None,
    layout: str = "auto",
    tile_size: int | None = None,
    dtype: str = "auto",
    positives: str = "own",
    plugins: Sequence[str] = (),
) -> LossFn:
    """Make the exact contrastive loss over the global batch.

    The loss is called in one of three places:

    - on global arrays that are sharded over a mesh, of `Auto` or of `Explicit` axes, as in a
      jitted step: `make_loss("clip", mesh=mesh, batch_axes=("dp",))`;
    - inside a `jax.shard_map` of your own, on each device's slice of the batch:
      `make_loss("clip", axis_name="dp")`;
    - on one device, without a mesh: `make_loss("clip")`.

    Args:
        name: "clip" (softmax, arXiv:2103.00020), "siglip" (sigmoid, arXiv:2303.15343), or
            a dense function of your own, or its `module:name`: it takes what `loss_fn` takes, of
            the whole batch, and returns the loss alone.
        mesh: the mesh that the embeddings are sharded over. None: that of the context
            (`jax.set_mesh`) or of the arrays; one device where there is neither.
        batch_axes: the mesh axes that shard the batch, in the order of the arrays' sharding. None:
            those of ("data", "fsdp") that the mesh has. Over other axes of the mesh the embeddings
            are replicated, and their devices repeat the work.
        axis_name: instead of `mesh` and `batch_axes`: the axes of the surrounding `jax.shard_map`
            that shard the batch. It has to track what varies over them, `check_vma=True`, its
            default.
        layout: "dense", "gather", "grid", "ring", or "auto" (see `choose_layout`; the choice is
            logged). All give the same numbers.
        tile_size: longest edge of a tile of logits; None for that of the platform, `TILE_SIZES`.
        dtype: that the embeddings are gathered and multiplied in, "float32" or "bfloat16"; sums are
            float32 either way, and so is the gradient of float32 embeddings, which the dense
            layout rounds once to the products' dtype. "auto" is bfloat16 on
            GPUs and TPUs, and the embeddings' own on a CPU (see docs/losses.md for the errors).
        positives: "own": an example matches its own pair alone. "equal_captions": images and texts
            of equal captions match, too (see docs/losses.md); `loss_fn` then takes the captions,
            and a train step of `make_train_step` hands it the batch's token ids.
        plugins: modules that the name may import, see `clipjax.building.resolve`.

    Returns:
        `loss_fn(image_embeds, text_embeds, logit_scale, logit_bias=None) -> (loss, metrics)`:
        embeddings `[batch, embed]`, L2-normalised, float32 or bfloat16, of the global batch (with
        `axis_name`, of this device's slice); `logit_scale` the LOG of the scale, an array `[]` or a
        float, `logit_bias` likewise; the loss a float32 `[]`, the same on every device; the metrics
        those of `pair_metrics`, without gradient. With `positives="equal_captions"` it is
        `loss_fn(image_embeds, text_embeds, logit_scale, logit_bias, captions)`: integers
        `[batch, length]`, the token ids with their padding, or `[batch]`, such as class numbers;
        captions are equal where their rows are. With `axis_name`, the gradients of what is
        replicated over the axes, such as parameters, are summed over them already, as everywhere
        under `check_vma=True`.

    Raises:
        ValueError: unknown name, layout or positives, positives of a loss that knows of one only, a
            tile size that is not positive or would be ignored, axes that the mesh does not have;
            or, when called, shapes that do not fit the mesh, captions where none are due or none
            where they are, or embeddings or captions that do not vary over `axis_name`.

    Example:
        ```python
        import clipjax, jax
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = jax.make_mesh((jax.device_count(),), ("dp",))
        loss_fn = clipjax.make_loss("clip", mesh=mesh, batch_axes="dp")
        rows = jax.random.normal(jax.random.key(0), (64, 16))
        rows /= jax.numpy.linalg.norm(rows, axis=1, keepdims=True)
        rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("dp")))
        (loss, metrics), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            rows, rows, 2.0
        )
        ```
    """
    dense = name if callable(name) else resolve(name, LOSSES, path="loss", plugins=plugins)
    rule = PAIR_RULES.get(name) if isinstance(name, str) else None
    label = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    _check_options(label, rule, layout, tile_size, dtype)
    takes_captions = _check_positives(label, rule, positives)
    placement_of = make_placement(mesh, batch_axes, axis_name)
    logged: set[str] = set()

    def chosen(batch_size: int, embed_dim: int, num_devices: int) -> str:
        if layout != "auto":
            return layout
        if rule is None:
            return "dense"
        choice = choose_layout(batch_size, embed_dim, num_devices)
        return "grid" if choice == "dense" and tile_size is not None else choice

    def dense_with_metrics(
        image: Array, text: Array, scale: Array, bias: Array | None, keys: Keys | None
    ) -> tuple[Array, dict[str, Array]]:
        if keys is None:
            return dense(image, text, scale, bias), pair_metrics(image, text, scale)
        positive = equal_pairs(keys, keys)
        loss = dense(image, text, scale, bias, positive)
        return loss, pair_metrics(image, text, scale, positive)

    def loss_fn(
        image_embeds: Float[Array, "batch embed"],
        text_embeds: Float[Array, "batch embed"],
        logit_scale: Float[Array, ""] | float,
        logit_bias: Float[Array, ""] | float | None = None,
        captions: Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        _check_shapes(image_embeds, text_embeds)
        logit_scale = as_scalar(logit_scale, "logit_scale")
        bias = None if logit_bias is None else as_scalar(logit_bias, "logit_bias")
        keys = None
        if takes_captions or captions is not None:
            keys = row_keys(_checked_captions(captions, len(image_embeds), takes_captions))
        placement = placement_of(image_embeds, text_embeds, keys)
        batch_size, num_devices = placement.batch_size(image_embeds), placement.devices.num_devices
        choice = chosen(batch_size, image_embeds.shape[1], num_devices)
        edge = tile_size or TILE_SIZES[placement.platform]
        own = jnp.promote_types(image_embeds.dtype, text_embeds.dtype)
        products = own if rule is None else _product_dtype(dtype, own, placement.platform)
        if choice not in logged:
            logged.add(choice)
            logging.info(
                "Loss %s: layout %s, %d device(s), batch %d, tiles up to %d, products of %s.",
                *(label, choice, num_devices, batch_size, edge, products),
            )
        inputs = image_embeds, text_embeds, logit_scale, bias, keys
        if rule is None:
            return placement.run_dense(dense_with_metrics, inputs)
        if choice == "dense":
            image, text = image_embeds.astype(products), text_embeds.astype(products)
            return placement.run_dense(dense_with_metrics, (image, text, logit_scale, bias, keys))
        # A softmax does not see a constant shift: without the bias its gradient is exactly zero.
        inputs = (*inputs[:3], bias if rule.uses_bias else None, keys)
        plan = LAYOUTS[choice](rule, placement.devices, edge, products)
        loss, metrics = pair_loss(plan, placement.mesh, *placement.shard(inputs))
        return loss, jax.lax.stop_gradient(metrics)

    loss_fn.takes_captions = takes_captions  # type: ignore[attr-defined]  # asked by PairObjective
    return loss_fn


def _product_dtype(dtype: str, own: np.dtype, platform: str) -> np.dtype:
    """The dtype of the products, of what is asked for and the embeddings' own."""
    if dtype != "auto":
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.bfloat16) if platform != "cpu" and own == jnp.float32 else own


def _check_options(
    name: str, rule: PairRule | None, layout: str, tile_size: int | None, dtype: str
) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} is unknown; allowed are {', '.join(DTYPES)}")
    if rule is None and dtype != "auto":
        raise ValueError(
            f"dtype = {dtype!r}, but the loss {name!r} has no row in PAIR_RULES: it multiplies as "
            'it is written; leave dtype at "auto"'
        )
    allowed = ("auto", "dense", *LAYOUTS)
    if layout not in allowed:
        raise ValueError(f"layout = {layout!r} is unknown; allowed are {', '.join(allowed)}")
    if rule is None and layout not in ("auto", "dense"):
        raise ValueError(
            f"layout = {layout!r}, but the loss {name!r} has no row in PAIR_RULES: it runs "
            'with layout "dense" only'
        )
    if tile_size is not None and (not isinstance(tile_size, int) or tile_size < 1):
        raise ValueError(f"tile_size = {tile_size}; it must be a whole number, at least 1, or None")
    if tile_size is not None and (layout == "dense" or rule is None):
        raise ValueError(
            f"tile_size = {tile_size} but the layout is dense, which has no tiles: set tile_size "
            "to None" + (" or take another layout" if rule is not None else "")
        )


def _check_positives(name: str, rule: PairRule | None, positives: str) -> bool:
    """Whether the loss takes captions."""
    if positives not in POSITIVES:
        raise ValueError(
            f"positives = {positives!r} is unknown; allowed are {', '.join(POSITIVES)}"
        )
    if rule is None and positives != "own":
        raise ValueError(
            f"positives = {positives!r}, but the loss {name!r} has no row in PAIR_RULES, and does "
            f'not know of several: set positives to "own", or take {" or ".join(PAIR_RULES)}'
        )
    return positives != "own"


def _checked_captions(captions: Any, batch: int, takes_captions: bool) -> Array:
    if not takes_captions:
        raise ValueError(
            'captions are given, and the loss was made with positives = "own": make it with '
            'make_loss(..., positives="equal_captions"), or leave them out'
        )
    if captions is None:
        raise ValueError(
            'positives = "equal_captions": the loss takes (image_embeds, text_embeds, logit_scale, '
            "logit_bias, captions), and captions are missing: give the token ids [batch, length]"
        )
    captions = jnp.asarray(captions)
    integers = jnp.issubdtype(captions.dtype, jnp.integer) and captions.dtype.itemsize <= 4
    if captions.ndim not in (1, 2) or len(captions) != batch or not integers:
        raise ValueError(
            f"captions are {captions.dtype} {captions.shape}; they must be token ids [batch, "
            f"length] or numbers [batch], int32, of the {batch} examples of the embeddings"
        )
    return captions


def _check_shapes(image_embeds: Array, text_embeds: Array) -> None:
    for name, x in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not hasattr(x, "shape"):
            raise ValueError(f"{name} are a {type(x).__name__}; they must be arrays")
    shapes = image_embeds.shape, text_embeds.shape
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or not shapes[0][0]:
        raise ValueError(
            f"image_embeds are {shapes[0]} and text_embeds {shapes[1]}; both must be "
            "[batch, embed], of at least one example"
        )
    for name, x in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} are {x.dtype}; they must be float32 or bfloat16")
