"""Build a loss over global arrays from its name, a mesh and a layout."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from clipjax.array_types import Array, Float
from clipjax.building import resolve
from clipjax.losses.clip import SoftmaxPairs, clip_loss
from clipjax.losses.layouts import LAYOUTS, Topology
from clipjax.losses.metrics import pair_metrics
from clipjax.losses.sharded import pair_loss
from clipjax.losses.siglip import SigmoidPairs, siglip_loss

LOSSES: dict[str, Callable] = {"clip": clip_loss, "siglip": siglip_loss}
"""Dense references: free functions of arrays."""

PAIR_RULES = {"clip": SoftmaxPairs(), "siglip": SigmoidPairs()}
"""What makes a loss run tiled; a loss without a row here runs dense only."""

LossFn = Callable[..., tuple[Array, dict[str, Array]]]

DEFAULT_TILE_SIZE = 1024
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
    p, q = Topology((), num_devices).fold()
    if num_devices == 1:
        return "dense" if batch_size <= DENSE_MAX_BATCH else "grid"
    if 6 * embed_dim * batch_size * (1 / p + 1 / q) > RING_MIN_BYTES:
        return "ring"
    return "gather" if p == 1 else "grid"


def make_loss(
    name: str,
    *,
    mesh: Mesh | None = None,
    layout: str = "auto",
    batch_axes: tuple[str, ...] = ("data", "fsdp"),
    tile_size: int | None = None,
    plugins: Sequence[str] = (),
) -> LossFn:
    """Make the exact contrastive loss over the global batch.

    Args:
        name: "clip" (softmax, arXiv:2103.00020), "siglip" (sigmoid, arXiv:2303.15343), or
            `module:name` of a dense function of one's own: it takes what `loss_fn` takes and
            returns the loss alone.
        mesh: the mesh that the embeddings are sharded over; None for one device.
        layout: "dense", "gather", "grid", "ring", or "auto" (see `choose_layout`; the choice is
            logged). All give the same numbers.
        batch_axes: mesh axes that shard the batch; those absent from the mesh are passed over.
            Over other axes of the mesh the embeddings are replicated.
        tile_size: longest edge of a tile of logits; None for 1,024.
        plugins: modules that the name may import, see `clipjax.building.resolve`.

    Returns:
        `loss_fn(image_embeds, text_embeds, logit_scale, logit_bias=None) -> (loss, metrics)`:
        embeddings `[batch, embed]` global, L2-normalised, float32 or bfloat16; `logit_scale` the
        LOG of the scale; the loss float32; the metrics those of `pair_metrics`, without gradient.

    Raises:
        ValueError: unknown name or layout, a tile size that is not positive or would be ignored,
            or, when called, shapes that do not fit the mesh.
    """
    dense = resolve(name, LOSSES, path="config.loss", plugins=plugins)
    _check_options(name, layout, tile_size)
    axes = tuple(a for a in batch_axes if mesh is not None and mesh.shape.get(a, 1) > 1)
    num_devices = 1
    for axis in axes:
        num_devices *= mesh.shape[axis]
    topology = Topology(axes, num_devices)
    rule = PAIR_RULES.get(name)
    said: set[str] = set()

    def chosen(batch_size: int, embed_dim: int) -> str:
        if layout != "auto":
            return layout
        if rule is None:
            return "dense"
        choice = choose_layout(batch_size, embed_dim, num_devices)
        return "grid" if choice == "dense" and tile_size is not None else choice

    def loss_fn(
        image_embeds: Float[Array, "batch embed"],
        text_embeds: Float[Array, "batch embed"],
        logit_scale: Float[Array, ""],
        logit_bias: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        batch_size, embed_dim = _check_shapes(image_embeds, text_embeds, topology)
        if logit_scale.shape:
            raise ValueError(f"logit_scale has shape {logit_scale.shape}; it must be a scalar []")
        choice = chosen(batch_size, embed_dim)
        if choice not in said:
            said.add(choice)
            logging.info(
                "Loss %s: layout %s, %d device(s), batch %d, tiles up to %d.",
                *(name, choice, num_devices, batch_size, tile_size or DEFAULT_TILE_SIZE),
            )
        if choice == "dense":
            loss = dense(image_embeds, text_embeds, logit_scale, logit_bias)
            return loss, pair_metrics(image_embeds, text_embeds, logit_scale)
        # A softmax does not see a constant shift: without the bias its gradient is exactly zero.
        bias = logit_bias if rule.uses_bias else None
        dtype = jnp.promote_types(image_embeds.dtype, text_embeds.dtype)
        plan = LAYOUTS[choice](rule, topology, tile_size or DEFAULT_TILE_SIZE)
        loss, metrics = pair_loss(
            plan, mesh, image_embeds.astype(dtype), text_embeds.astype(dtype), logit_scale, bias
        )
        return loss, jax.lax.stop_gradient(metrics)

    return loss_fn


def _check_options(name: str, layout: str, tile_size: int | None) -> None:
    allowed = ("auto", "dense", *LAYOUTS)
    if layout not in allowed:
        raise ValueError(f"loss.layout is {layout!r}; known layouts are {allowed}")
    if name not in PAIR_RULES and layout not in ("auto", "dense"):
        raise ValueError(
            f"loss.layout is {layout!r}, but the loss {name!r} has no row in PAIR_RULES: it runs "
            'with layout "dense" only'
        )
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"loss.tile_size is {tile_size}; it must be at least 1, or None")
    if tile_size is not None and layout == "dense":
        raise ValueError(
            f"loss.tile_size is {tile_size} but the layout is dense, which has no tiles: set "
            "loss.tile_size to None or take another layout"
        )


def _check_shapes(image_embeds: Array, text_embeds: Array, topology: Topology) -> tuple[int, int]:
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds are {image_embeds.shape} and text_embeds {text_embeds.shape}; both "
            "must be [batch, embed]"
        )
    batch_size, embed_dim = image_embeds.shape
    if batch_size == 0 or batch_size % topology.num_devices:
        raise ValueError(
            f"the global batch is {batch_size}; it must be a positive multiple of the "
            f"{topology.num_devices} devices of the mesh axes {topology.axes}"
        )
    return batch_size, embed_dim
