"""Sharding: the mesh, one table of rules, and the shardings that follow from them.

Layers name the LOGICAL axes of their parameters and activations; only this package knows which
MESH axes those fall on. Data parallelism, ZeRO-1 (arXiv:1910.02054), fully sharded data
parallelism and tensor parallelism (arXiv:1909.08053) are rows of `LOGICAL_AXIS_RULES` (rules.py),
not code. mesh.py lays out the devices and the batch, state.py the train state. docs/sharding.md has
the maths.
"""

from clipjax.partitioning.mesh import (
    BATCH_AXES,
    MESH_AXES,
    batch_sharding,
    global_batch,
    make_mesh,
    mesh_shape,
    num_batch_shards,
    place,
    replicated,
)
from clipjax.partitioning.rules import (
    LOGICAL_AXES,
    LOGICAL_AXIS_RULES,
    Rule,
    ShardingRules,
    rules_of,
    spec_of,
)
from clipjax.partitioning.state import stacked_axes, state_axes, state_shardings, unsharded_state
