"""Mixtures of the weights of one model, leaf by leaf (arXiv:2203.05482, arXiv:2109.01903)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.config import iterate_leaves
from clipjax.interop.hugging_face.comparison import UNSAID
from clipjax.interop.tensors import LazyTensor
from clipjax.interop.weights import Weights

# Fields of a spec that change no number of a trained model: labels, and rates of training.
_FREE = (*UNSAID, "tokenizer.model")


def check_alike(ingredients: Mapping[str, Weights]) -> None:
    """Refuses to mix what is not one model: another architecture, tokenizer or preprocessing.

    Args:
        ingredients: by what a person calls them.

    Raises:
        ValueError: names the first field or leaf that differs, with both values.
    """
    (first, base), *others = ingredients.items()
    wanted, shapes = _said_by(base), _shapes_of(base)
    for name, weights in others:
        for table, found in ((wanted, _said_by(weights)), (shapes, _shapes_of(weights))):
            odd = sorted(k for k in table.keys() | found.keys() if table.get(k) != found.get(k))
            if odd:
                raise ValueError(
                    f"{name} is another model than {first}: {odd[0]} is "
                    f"{found.get(odd[0], 'absent')} there and {table.get(odd[0], 'absent')} here; "
                    "a mixture is of checkpoints of one model"
                )


def _said_by(weights: Weights) -> dict[str, Any]:
    return {k: v for k, v in iterate_leaves(weights.spec) if k not in _FREE}


def _shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in weights.leaves.items()}


def mixture(parts: Sequence[tuple[float, Weights]]) -> Weights:
    """The sum of weights times their shares; one leaf is in memory at a time.

    Args:
        parts: (share, weights) of models that are alike, see `check_alike`; shares sum to 1.

    Returns:
        The spec, the tokenizer and the prompts are the first one's. Sums are of float64.
    """
    _, first = parts[0]

    def mixed(name: str) -> LazyTensor:
        leaves = [(share, weights.leaves[name]) for share, weights in parts if share]

        def read() -> np.ndarray:
            if len(leaves) == 1 and leaves[0][0] == 1:
                return leaves[0][1].read().astype(np.float32)
            total = sum(share * leaf.read().astype(np.float64) for share, leaf in leaves)
            return np.asarray(total, np.float32)

        return LazyTensor(first.leaves[name].shape, np.dtype(np.float32), read)

    told = " + ".join(f"{share:.6g} x {weights.source}" for share, weights in parts if share)
    return dataclasses.replace(
        first,
        leaves={name: mixed(name) for name in first.leaves},
        source=f"mixture: {told}",
        adapter=None,
    )
