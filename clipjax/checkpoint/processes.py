"""One answer for all processes: what the lead decides, and whether everybody succeeded.

These are collectives: every process calls them at the same place, from its main thread.
"""

import jax
import numpy as np


def from_lead(number: int) -> int:
    """Returns the lead process's number in every process."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_succeeded(success: bool) -> bool:
    """Whether `success` holds in every process."""
    if jax.process_count() == 1:
        return success
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(success))))
