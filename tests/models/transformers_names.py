"""Turns tensors under transformers' names to a tree of ours, for tests."""

import numpy as np

from clipjax.interop.hugging_face import align, bert
from clipjax.interop.leaves import LINEAR, leaf
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names


def align_table(spec):
    """ALIGN's, but for the scale: the golden loss takes the logarithm, as ours does."""
    rows = [row for row in align.leaves(spec) if row.name != "logit_scale"]
    return [*rows, leaf("logit_scale", "logit_scale")]


def xlm_roberta_table(tower):
    """OpenCLIP's text tower with its projection."""
    projections = {"fc": "proj.0.weight", "proj": "proj.2.weight"}
    kernels = [leaf(f"projection/{a}/kernel", b, LINEAR) for a, b in projections.items()]
    return [*bert.leaves("encoder", "transformer", tower), *kernels]


def convert(tensors, table):
    """Our tree, scanned, of all tensors of a table or of a part, such as gradients."""
    found, used = {}, set()
    for entry in table:
        if all(name in tensors for name in entry.theirs):
            value = entry.to_ours([np.asarray(tensors[name]) for name in entry.theirs])
            found[entry.name.removeprefix("batch_stats/")] = value
            used.update(entry.theirs)
    assert used == tensors.keys()
    return stack_layers(unflatten_names(found))
