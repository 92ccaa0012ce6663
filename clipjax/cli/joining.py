"""The flag of the verbs that several processes run as one, and how those join."""

import os

from absl import flags

from clipjax.processes import distributed, process_log
from clipjax.processes.clusters import find_cluster

_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the processes of a cluster."
)


def mode() -> str:
    """What --distributed says."""
    return _DISTRIBUTED.value


def join() -> None:
    """Joins the processes of a verb without a workdir, before anything else touches a device."""
    from clipjax.processes import peers

    if mode() != "off" and find_cluster(os.environ) is not None:
        process_log.start(None)  # dumps of several processes, of which one is lost
    peers.join(mode(), distributed.Limits())
