"""Turns tensors under OpenCLIP's names to a tree of ours, for tests."""

import numpy as np

from clipjax.interop.open_clip import leaves
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names


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


def convert_all(tensors, spec):
    """Our variables of a whole state dict: parameters, and running statistics if it has any."""
    statistics = {k: x for k, x in tensors.items() if ".running_" in k}
    params = {k: x for k, x in tensors.items() if k not in statistics}
    variables = {"params": convert(params, spec)}
    return {**variables, "batch_stats": convert(statistics, spec)} if statistics else variables
