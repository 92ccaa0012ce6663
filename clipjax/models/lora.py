"""LoRA: kernels that stay as they are, each with a difference of low rank that learns.

`params["lora"]` holds the two factors of each adapted kernel under the kernel's own name: `a` maps
the inputs to `rank` numbers, `b` those to the outputs. The model computes with `kernel + scale * a
b`, so a module knows nothing of it, and any tower can be adapted. Of a fused qkv each of q, k and v
has factors of its own, and so has each layer of a stack.

Reference: arXiv:2106.09685; the start is that of peft, `a` uniform and `b` zero.
"""

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.files import sha256
from clipjax.models.layers_layout import block_names
from clipjax.optim.muon import matrix_axes
from clipjax.partitioning.boxes import boxed_axes, in_box, unbox
from clipjax.trees import flatten_with_names, matching_leaves, unflatten_names

LORA = "lora"
_A, _B = "a", "b"


def is_of_lora(leaf: str) -> bool:
    """Whether a leaf of a train state, by its name, is a factor.

    `params/lora/...`, `ema_params/lora/...`, `averages/NAME/lora/...`.
    """
    root, *names = leaf.split("/")
    return LORA in (names[1:2] if root == "averages" else names[:1])


def kernel_of(name: str) -> str:
    """The name of the kernel that a factor is of; any other parameter's own."""
    return name.removeprefix(f"{LORA}/").rpartition("/")[0] if name.startswith(f"{LORA}/") else name


def adapted_kernels(patterns: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The kernels that get factors, in the layout of the names: a stack as a whole, or not at all.

    Args:
        patterns: regular expressions of names; `/block_3/` names one block of a stack, `/blocks/`
            all of them.
        shapes: of the parameters by name, blocks stacked or apart.

    Raises:
        ValueError: a pattern matches no kernel; embeddings and convolutions are none.
    """
    stacks: dict[str, set[str]] = {}  # by the name of the stack: what a pattern may call it
    for name, shape in shapes.items():
        if matrix_axes(name, len(shape)) is not None:
            stack = _stack_of(name)
            stacks.setdefault(stack, {stack}).update({name, *block_names(name, shape)})
    names = sorted(name for names in stacks.values() for name in names)
    kind = "kernel that is a matrix"
    found = matching_leaves(patterns, names, where="lora.targets", kind=kind)
    return {name for name in shapes if not found.isdisjoint(stacks.get(_stack_of(name), ()))}


def _stack_of(name: str) -> str:
    return re.sub(r"/block_\d+/", "/blocks/", name)


class _Factors:
    """Shapes and axes of the factors of one kernel."""

    def __init__(self, name: str, ndim: int) -> None:
        found = matrix_axes(name, ndim)
        if found is None:
            raise ValueError(f"{name} of {ndim} dimensions is no matrix")
        self.inputs, self.outputs = found
        self.several = [axis for axis in range(ndim) if axis not in (*self.inputs, *self.outputs)]
        self.ndim = ndim

    def a(self, of_axes: Sequence[Any], rank: Any) -> tuple[Any, ...]:
        """What `a` has of what a kernel has of each of its axes."""
        return (*(x for axis, x in enumerate(of_axes) if axis not in self.outputs), rank)

    def b(self, of_axes: Sequence[Any], rank: Any) -> tuple[Any, ...]:
        """What `b` has."""
        several = (of_axes[axis] for axis in self.several)
        return (*several, rank, *(of_axes[axis] for axis in self.outputs))

    @property
    def product(self) -> str:
        """The product of both, for einsum."""
        letters = string.ascii_lowercase[: self.ndim]
        a, b = ("".join(each(letters, "z")) for each in (self.a, self.b))
        return f"{a},{b}->{letters}"


def check_factors(
    factors: Mapping[str, Sequence[int]], kernels: Mapping[str, Sequence[int]], rank: int
) -> None:
    """Compares the shapes of factors, `KERNEL/a` and `KERNEL/b`, with those of the kernels.

    Raises:
        ValueError: names a factor that is alone, of no kernel, or of another shape.
    """
    for kernel in factor_names(factors):
        shape = kernels.get(kernel)
        if shape is None or matrix_axes(kernel, len(shape)) is None:
            raise ValueError(f"there are factors of low rank of {kernel}, which is no kernel here")
        of_kernel = _Factors(kernel, len(shape))
        wanted = {_A: of_kernel.a(shape, rank), _B: of_kernel.b(shape, rank)}
        for side, its_shape in wanted.items():
            found = factors.get(f"{kernel}/{side}")
            if found is None or tuple(found) != its_shape:
                raise ValueError(
                    f"the factor {kernel}/{side} is {found and tuple(found)}; that of rank {rank} "
                    f"of a kernel {tuple(shape)} is {its_shape}"
                )
    odd = [name for name in factors if name.rpartition("/")[2] not in (_A, _B)]
    if odd:
        raise ValueError(f"{odd[0]} is no factor: these are called a and b")


def add_factors(
    variables: Mapping[str, Any], key: jax.Array, rank: int, is_adapted: Callable[[str], bool]
) -> dict[str, Any]:
    """Draws factors beside the kernels that a function names.

    Args:
        variables: of the model, with flax's boxes, which hold the logical axes.
        key: typed PRNG key.
        rank: of the differences.
        is_adapted: the kernels by name.

    Returns:
        The variables with `params["lora"]`: `a` is uniform in +-1 / sqrt(inputs), `b` is zero.
    """
    shapes = dict(flatten_with_names(unbox(variables["params"])))
    axes = dict(flatten_with_names(boxed_axes(variables["params"])))
    found: dict[str, Any] = {}
    for name, kernel in shapes.items():
        if not is_adapted(name):
            continue
        factors = _Factors(name, kernel.ndim)
        names = (*axes[name], *[None] * (kernel.ndim - len(axes[name])))
        inputs = math.prod(kernel.shape[axis] for axis in factors.inputs)
        number = int(sha256(name)[:8], 16)
        bound = 1 / math.sqrt(inputs)
        a = jax.random.uniform(
            jax.random.fold_in(key, number),
            factors.a(kernel.shape, rank),
            jnp.float32,
            -bound,
            bound,
        )
        b = jnp.zeros(factors.b(kernel.shape, rank), jnp.float32)
        found[f"{name}/{_A}"] = in_box(a, factors.a(names, None))
        found[f"{name}/{_B}"] = in_box(b, factors.b(names, None))
    params = {**variables["params"], LORA: unflatten_names(found)}
    return {**variables, "params": params}


def merged(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The parameters that the model computes with, float32: those without factors are its own.

    Args:
        params: with factors or without.
        scale: of the differences, alpha / rank.
    """

    def add(name: str, kernel: Any, a: Any, b: Any) -> Any:
        product = _Factors(name, kernel.ndim).product
        return kernel + scale * jnp.einsum(product, a, b, precision=jax.lax.Precision.HIGHEST)

    return _merged_by(add, params)


def merged_kernel(
    name: str, kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
) -> np.ndarray:
    """One kernel and its difference, summed in float64 and rounded once to float32."""
    product = _Factors(name, kernel.ndim).product
    difference = np.einsum(product, a.astype(np.float64), b.astype(np.float64), optimize=True)
    return np.asarray(kernel.astype(np.float64) + scale * difference, np.float32)


def merged_on_host(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """As `merged`, of arrays of NumPy, by `merged_kernel`."""

    def add(name: str, kernel: Any, a: Any, b: Any) -> np.ndarray:
        return merged_kernel(name, np.asarray(kernel), np.asarray(a), np.asarray(b), scale)

    return _merged_by(add, params)


def _merged_by(add: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    params = dict(params)
    factors = dict(flatten_with_names(params.pop(LORA, {})))
    leaves = dict(flatten_with_names(params))
    for name in factor_names(factors):
        a, b = (factors[f"{name}/{side}"] for side in (_A, _B))
        leaves[name] = add(name, leaves[name], a, b)
    return unflatten_names(leaves)


def factor_names(names: Iterable[str]) -> list[str]:
    """The kernels that factors, named without `lora/`, are of."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in names))
