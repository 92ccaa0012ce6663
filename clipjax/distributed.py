"""Processes: joining a run, knowing the lead host, agreeing between hosts."""

import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

# Set by launch/local.sh for N processes of one machine; pods and Slurm are recognised by JAX.
COORDINATOR = "CLIPJAX_COORDINATOR"
NUM_PROCESSES = "CLIPJAX_NUM_PROCESSES"
PROCESS_ID = "CLIPJAX_PROCESS_ID"

# Seconds without a sign of life after which a process counts as dead; JAX's own 100 s would keep
# the others of a pod waiting longer than a minute.
_HEARTBEAT_TIMEOUT_S = 30
_DAY_MS = 24 * 3600 * 1000
_PLACE = "clipjax"  # in the key-value store
_meetings = itertools.count()

# Each marks an environment that `jax.distributed.initialize()` can read by itself. A laptop has
# none of them, and there the call would raise.
_CLUSTER_MARKS = (
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "OMPI_MCA_orte_hnp_uri",
    "JAX_COORDINATOR_ADDRESS",
)


def initialize(mode: str = "auto") -> bool:
    """Joins the processes of this run; must come before any other use of JAX.

    Args:
        mode: `auto` looks at the environment, `on` asks JAX to find its cluster, `off` does not.

    Returns:
        Whether there is a cluster that was joined.

    Raises:
        ValueError: an unknown mode, or an incomplete set of `CLIPJAX_*` variables.
    """
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"--distributed={mode}: allowed are auto, on, off")
    if mode == "off":
        return False
    environment = os.environ
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT_S}
    if COORDINATOR in environment:
        missing = [name for name in (NUM_PROCESSES, PROCESS_ID) if name not in environment]
        if missing:
            raise ValueError(f"{COORDINATOR} is set but {', '.join(missing)} is not; set them all")
        options |= {
            "coordinator_address": environment[COORDINATOR],
            "num_processes": int(environment[NUM_PROCESSES]),
            "process_id": int(environment[PROCESS_ID]),
        }
    elif mode == "auto" and not is_cluster(environment):
        return False
    jax.distributed.initialize(**options)
    return True


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of a cluster's."""
    slurm = int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment
    workers = environment.get("TPU_WORKER_HOSTNAMES", "")
    marks = [m for m in _CLUSTER_MARKS if environment.get(m) and m != "TPU_WORKER_HOSTNAMES"]
    return bool(marks) or slurm or len(workers.split(",")) > 1


def is_lead() -> bool:
    """Whether this process writes the logs, metrics and reports."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Gives the JSON-able values of all processes, in their order; all of them wait for all.

    What hosts tell one another goes through the coordination service of `jax.distributed`, without
    a word to the devices. A process that dies meanwhile is noticed by its heartbeat, one that hangs
    by the watchdog of the loop.
    """
    if jax.process_count() == 1:
        return [value]
    number, me = next(_meetings), jax.process_index()
    _store().key_value_set(f"{_PLACE}/{number}/{me}", json.dumps(value))
    found = [_read(f"{number}/{process}") for process in range(jax.process_count())]
    # Who is in this meeting has left the one before it.
    _store().key_value_delete(f"{_PLACE}/{number - 1}/{me}")
    return found


def agree(values: Mapping[str, str]) -> None:
    """Checks that all processes hold the same named strings (config hash, data fingerprint, ...).

    Raises:
        ValueError: names the first value that differs, and the processes that differ from 0.
    """
    found = gather(dict(values))
    for name in sorted(values):
        others = [p for p, theirs in enumerate(found) if theirs.get(name) != found[0][name]]
        if others:
            raise ValueError(
                f"processes {others} differ from process 0 in their {name}; "
                "start all of them with the same code, config and data"
            )
    if len(found) > 1:
        logging.info("%d processes agree on %s", len(found), ", ".join(sorted(values)))


def gather_at_lead(name: str, value: Any) -> list[Any]:
    """Gives the lead the JSON-able values of all processes; only the lead waits for the others.

    Args:
        name: the name of this exchange; the same in all processes, and another one each time.
        value: what this process tells.

    Returns:
        The values in the order of the processes; in all but the lead, this process's alone.
    """
    if jax.process_count() == 1:
        return [value]
    if not is_lead():
        _store().key_value_set(f"{_PLACE}/{name}/{jax.process_index()}", json.dumps(value))
        return [value]
    others = [_read(f"{name}/{process}") for process in range(1, jax.process_count())]
    _store().key_value_delete(f"{_PLACE}/{name}/")
    return [value, *others]


def _store() -> Any:
    from jax._src.distributed import global_state  # JAX has no public way to its key-value store

    return global_state.client


def _read(key: str) -> Any:
    return json.loads(_store().blocking_key_value_get(f"{_PLACE}/{key}", _DAY_MS))
