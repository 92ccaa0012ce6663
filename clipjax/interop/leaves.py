"""Which of their tensors a parameter is made of, and how: one table a family, read both ways.

A family's table is a tuple of `Leaf`; its transforms are those below, or others made of them with
`then`. All of them are views where numpy can give one: the copy is made once, at the end.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Part of their tensor: parts `start` to `stop` of `parts` equal ones along its first axis.

    For a tensor of theirs that several of our leaves share, such as a fused q, k, v of which we
    keep q apart.
    """

    name: str
    start: int = 0
    stop: int = 1
    parts: int = 1

    @classmethod
    def of(cls, theirs: "str | Rows") -> "Rows":
        """The rows that a table names; a name alone is that of all rows."""
        return cls(theirs) if isinstance(theirs, str) else theirs


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter of ours and the tensors of theirs that it is made of.

    Attributes:
        name: our unrolled name without root, `image_encoder/transformer/block_3/mlp/fc/kernel` or
            `logit_scale`; running statistics are `batch_stats/image_encoder/bn1/mean`.
        theirs: names of their tensors, or `Rows` of them.
        to_ours: makes our array of theirs.
        to_theirs: makes theirs of ours, as many as `theirs`.
    """

    name: str
    theirs: tuple[str | Rows, ...]
    to_ours: Callable[[Arrays], np.ndarray]
    to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Transform:
    """An invertible change of layout: `ours = to_ours(theirs)`, `theirs = to_theirs(ours)`."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]

    def then(self, after: "Transform") -> "Transform":
        """First this one, then `after`, on the way from theirs to ours."""
        return Transform(
            lambda x: after.to_ours(self.to_ours(x)), lambda x: self.to_theirs(after.to_theirs(x))
        )


def transpose(*axes: int) -> Transform:
    """`ours = theirs.transpose(axes)`."""
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


def reshape(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Transform:
    """Another shape of the same elements; both shapes whole, without -1."""
    return Transform(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


IDENTITY = Transform(lambda x: x, lambda x: x)
LINEAR = transpose(1, 0)  # [out, in] <-> kernel [in, out]
CONV = transpose(2, 3, 1, 0)  # OIHW <-> HWIO
SCALAR = reshape((1,), ())  # a scalar that they keep as [1]


def drop_axes(*axes: int) -> Transform:
    """Axes of size 1 that they have and we do not; `axes` are those of their array."""
    return Transform(lambda x: np.squeeze(x, axes), lambda x: np.expand_dims(x, axes))


def split_kernel(num_heads: int) -> Transform:
    """A layer into heads: [heads * head_dim, width] <-> [width, heads, head_dim]."""
    return LINEAR.then(
        Transform(
            lambda x: x.reshape(x.shape[0], num_heads, -1), lambda x: x.reshape(x.shape[0], -1)
        )
    )


def split_bias(num_heads: int) -> Transform:
    """The bias of a layer into heads: [heads * head_dim] <-> [heads, head_dim]."""
    return Transform(lambda x: x.reshape(num_heads, -1), lambda x: x.reshape(-1))


def merge_kernel(num_heads: int) -> Transform:
    """A layer out of heads: [width, heads * head_dim] <-> [heads, head_dim, width]."""
    return LINEAR.then(
        Transform(
            lambda x: x.reshape(num_heads, -1, x.shape[-1]), lambda x: x.reshape(-1, x.shape[-1])
        )
    )


def fused_kernel(num_heads: int, parts: int = 3) -> Transform:
    """[parts * heads * head_dim, width] <-> [width, parts, heads, head_dim]: q, k, v or k, v."""
    return Transform(
        lambda x: x.reshape(parts, num_heads, -1, x.shape[-1]).transpose(3, 0, 1, 2),
        lambda x: x.transpose(1, 2, 3, 0).reshape(-1, x.shape[0]),
    )


def fused_bias(num_heads: int, parts: int = 3) -> Transform:
    """[parts * heads * head_dim] <-> [parts, heads, head_dim]."""
    return Transform(lambda x: x.reshape(parts, num_heads, -1), lambda x: x.reshape(-1))


def leaf(name: str, theirs: str | Rows, transform: Transform = IDENTITY) -> Leaf:
    """A leaf that is one tensor of theirs."""
    return Leaf(
        name,
        (theirs,),
        lambda arrays: transform.to_ours(arrays[0]),
        lambda array: (transform.to_theirs(array),),
    )


def joined_leaf(
    name: str, theirs: Sequence[str | Rows], axis: int, each: Transform = IDENTITY
) -> Leaf:
    """A leaf that stacks several tensors of theirs, such as q, k, v."""
    return Leaf(
        name,
        tuple(theirs),
        lambda arrays: np.stack([each.to_ours(x) for x in arrays], axis=axis),
        lambda array: tuple(each.to_theirs(x) for x in np.moveaxis(array, axis, 0)),
    )


def norm_leaves(ours: str, theirs: str) -> tuple[Leaf, ...]:
    """A layer normalisation, or the learned part of a batch normalisation."""
    return leaf(f"{ours}/scale", f"{theirs}.weight"), leaf(f"{ours}/bias", f"{theirs}.bias")


def batch_norm_leaves(ours: str, theirs: str) -> tuple[Leaf, ...]:
    """A batch normalisation with its running statistics."""
    return (
        *norm_leaves(ours, theirs),
        leaf(f"batch_stats/{ours}/mean", f"{theirs}.running_mean"),
        leaf(f"batch_stats/{ours}/var", f"{theirs}.running_var"),
    )


def linear_leaves(ours: str, theirs: str) -> tuple[Leaf, ...]:
    """A linear layer with a bias."""
    return (
        leaf(f"{ours}/kernel", f"{theirs}.weight", LINEAR),
        leaf(f"{ours}/bias", f"{theirs}.bias"),
    )


def qkv_kernel_leaf(name: str, theirs: Sequence[str | Rows], num_heads: int) -> Leaf:
    """[heads * head_dim, width] of q, k, v (or k, v) <-> [width, 3, heads, head_dim]."""
    return joined_leaf(name, theirs, 1, split_kernel(num_heads))


def qkv_bias_leaf(name: str, theirs: Sequence[str | Rows], num_heads: int) -> Leaf:
    """[heads * head_dim] of q, k, v (or k, v) <-> [3, heads, head_dim]."""
    return joined_leaf(name, theirs, 0, split_bias(num_heads))


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """What a code base calls the parts of a transformer's block.

    Attributes:
        qkv: kernel and bias of one layer that gives q, k and v; or three layers.
        out: the layer behind attention; `fc` and `proj` are those of the MLP.
    """

    ln_1: str
    ln_2: str
    qkv: tuple[str, ...]
    out: str
    fc: str
    proj: str


def stack_leaves(
    ours: str, theirs: str, names: BlockNames, tower: Mapping[str, Any]
) -> tuple[Leaf, ...]:
    """All blocks of a tower, an `image` or `text` of a spec; theirs are called `theirs.NUMBER`."""
    found: list[Leaf] = []
    for i in range(tower["depth"]):
        our, their = f"{ours}/transformer/block_{i}", f"{theirs}.{i}"
        found += norm_leaves(f"{our}/ln_1", f"{their}.{names.ln_1}")
        found += norm_leaves(f"{our}/ln_2", f"{their}.{names.ln_2}")
        layers = [f"{their}.{name}" for name in names.qkv]
        found += _qkv_leaves(f"{our}/attention", layers, tower["num_heads"])
        found += out_leaves(f"{our}/attention", f"{their}.{names.out}", tower["num_heads"])
        found += linear_leaves(f"{our}/mlp/fc", f"{their}.{names.fc}")
        found += linear_leaves(f"{our}/mlp/proj", f"{their}.{names.proj}")
    return tuple(found)


def _qkv_leaves(ours: str, layers: Sequence[str], num_heads: int) -> tuple[Leaf, Leaf]:
    kernel, bias = f"{ours}/qkv_kernel", f"{ours}/qkv_bias"
    if len(layers) == 2:
        return (
            leaf(kernel, layers[0], fused_kernel(num_heads)),
            leaf(bias, layers[1], fused_bias(num_heads)),
        )
    return (
        qkv_kernel_leaf(kernel, [f"{x}.weight" for x in layers], num_heads),
        qkv_bias_leaf(bias, [f"{x}.bias" for x in layers], num_heads),
    )


def out_leaves(ours: str, theirs: str, num_heads: int) -> tuple[Leaf, Leaf]:
    """The layer behind attention, which mixes its heads."""
    return (
        leaf(f"{ours}/out_kernel", f"{theirs}.weight", merge_kernel(num_heads)),
        leaf(f"{ours}/out_bias", f"{theirs}.bias"),
    )


Parts = tuple[str | Rows, str | Rows]  # kernel and bias


def map_head_leaves(
    theirs: str, num_heads: int, *, probe: str, q: Parts, kv: Parts, out: str, norm: str
) -> tuple[Leaf, ...]:
    """Attention pooling of SigLIP's image tower; `kv` gives k and v, one after the other."""
    ours = "image_encoder/map_head"
    return (
        leaf(f"{ours}/probe", f"{theirs}.{probe}", drop_axes(0)),
        leaf(f"{ours}/attention/q_kernel", q[0], split_kernel(num_heads)),
        leaf(f"{ours}/attention/q_bias", q[1], split_bias(num_heads)),
        leaf(f"{ours}/attention/kv_kernel", kv[0], fused_kernel(num_heads, 2)),
        leaf(f"{ours}/attention/kv_bias", kv[1], fused_bias(num_heads, 2)),
        *out_leaves(f"{ours}/attention", f"{theirs}.{out}", num_heads),
        *norm_leaves(f"{ours}/norm", f"{theirs}.{norm}"),
        *linear_leaves(f"{ours}/mlp/fc", f"{theirs}.mlp.fc1"),
        *linear_leaves(f"{ours}/mlp/proj", f"{theirs}.mlp.fc2"),
    )


def their_shapes(entry: Leaf, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes that a leaf's transform gives theirs, from our shape alone."""
    # One element seen through zero strides: the transforms' views cost no memory.
    dummy = np.broadcast_to(np.zeros((), np.float32), shape)
    return tuple(x.shape for x in entry.to_theirs(dummy))


def by_name(leaves: Sequence[Leaf]) -> Mapping[str, Leaf]:
    """The table by our names.

    Raises:
        ValueError: a name stands twice.
    """
    table = {entry.name: entry for entry in leaves}
    if len(table) != len(leaves):
        names = [entry.name for entry in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"leaves that stand twice in the table: {', '.join(twice)}")
    return table
