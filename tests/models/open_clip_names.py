"""Turns tensors under OpenCLIP's names to a tree of ours, for tests."""

import numpy as np

from clipjax.interop.open_clip import leaves
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def join_parts(leaves):
    """Stacks `name#0`, `name#1`, ...: kernels [width, part, ...], biases [part, ...]."""
    leaves = dict(leaves)
    for name in [name.removesuffix("#0") for name in leaves if name.endswith("#0")]:
        parts = sorted(key for key in leaves if key.startswith(f"{name}#"))
        axis = 1 if name.endswith("kernel") else 0
        leaves[name] = np.stack([leaves.pop(part) for part in parts], axis=axis)
    return leaves


def convert(tensors, spec):
    """Our tree, scanned, of an OpenCLIP state dict or of a part of one, such as gradients."""
    found, used = {}, set()
    for entry in leaves(spec):
        if all(name in tensors for name in entry.theirs):
            value = entry.to_ours([np.asarray(tensors[name]) for name in entry.theirs])
            found[entry.name.removeprefix("batch_stats/")] = value
            used.update(entry.theirs)
    assert used == tensors.keys()
    return stack_layers(unflatten_names(found))
