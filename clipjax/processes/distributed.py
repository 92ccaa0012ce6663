"""Processes: joining a run, knowing the lead host, agreeing between hosts."""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipjax.processes.clusters import find_cluster

_DAY_MS = 24 * 3600 * 1000
_PLACE = "clipjax"  # in the key-value store
_meetings = itertools.count()


class Limits(NamedTuple):
    """Seconds that processes wait for one another.

    Attributes:
        join_timeout_s: for all to come, at the start.
        heartbeat_timeout_s: for a sign of life of each; JAX's own 100 s would keep the others of a
            pod waiting longer than a minute.
        end_timeout_s: for all to come to their end.
    """

    join_timeout_s: int = 300
    heartbeat_timeout_s: int = 30
    end_timeout_s: int = 300


def initialize(mode: str = "auto", limits: Limits | None = None) -> bool:
    """Joins the processes of this run; must come before any other use of JAX.

    Args:
        mode: `auto` looks at the environment, `on` also asks JAX to find a cluster, `off` does not.
        limits: how long processes wait for one another; `Limits()` if None.

    Returns:
        Whether there is a cluster that was joined.

    Raises:
        ValueError: an unknown mode, or an environment of several processes that cannot be joined.
    """
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"--distributed={mode}: allowed are auto, on, off")
    if mode == "off":
        return False
    found = find_cluster(os.environ)
    if found is None and mode == "auto":
        return False
    # Its handler would take SIGTERM from ours, which hears more (clipjax/processes/signals.py).
    jax.config.update("jax_enable_preemption_service", False)
    limits = limits or Limits()
    with _registering(limits.join_timeout_s):
        jax.distributed.initialize(
            # The service knows who is missing: its answer comes before the clients give up.
            initialization_timeout=limits.join_timeout_s + 2,
            heartbeat_timeout_seconds=limits.heartbeat_timeout_s,
            shutdown_timeout_seconds=limits.end_timeout_s,
            **(found or {}),
        )
    return True


@contextlib.contextmanager
def _registering(timeout_s: int) -> Iterator[None]:
    """Lets the service wait so long for all to come; JAX has the option, and no way to it."""
    from jax._src.lib import _jax

    plain = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(
        plain, cluster_register_timeout=timeout_s
    )
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = plain


def connect(mesh: Mesh) -> None:
    """Has all processes come to the first collectives of a mesh's axes together.

    gloo, which CPUs use, gives up when a process comes to the first collective of a group of
    devices 30 s after another, and no option changes that; later ones wait for as long as it
    takes. Behind this, a process may be late: its data, its compilation, its machine are slower.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [name for name, size in mesh.shape.items() if size > 1]
    groups = [g for n in range(len(axes)) for g in itertools.combinations(axes, n + 1)]

    def sums(one: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(one, group) for group in groups]

    alike = PartitionSpec()
    summing = jax.shard_map(sums, mesh=mesh, in_specs=alike, out_specs=alike, check_vma=False)
    one = np.ones(())
    program = jax.jit(summing, in_shardings=NamedSharding(mesh, alike)).lower(one).compile()
    gather(None)
    jax.block_until_ready(program(one))


def process_index() -> int:
    """The number of this process in the run; unlike JAX's, it starts no device."""
    return _state().process_id


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
    store().key_value_set(f"{_PLACE}/{number}/{me}", json.dumps(value))
    found = [_read(f"{number}/{process}") for process in range(jax.process_count())]
    # Who is in this meeting has left the one before it.
    store().key_value_delete(f"{_PLACE}/{number - 1}/{me}")
    return found


def gather_errors(error: BaseException | None) -> str:
    """What the processes say that failed, and which they are; empty where none of them did."""
    told = gather(None if error is None else f"{type(error).__name__}: {error}")
    return "; ".join(f"process {number}: {text}" for number, text in enumerate(told) if text)


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
        store().key_value_set(f"{_PLACE}/{name}/{jax.process_index()}", json.dumps(value))
        return [value]
    others = [_read(f"{name}/{process}") for process in range(1, jax.process_count())]
    store().key_value_delete(f"{_PLACE}/{name}/")
    return [value, *others]


def num_joined() -> int:
    """How many processes joined the run; 1 before they have. Touches no device."""
    return _state().num_processes if store() is not None else 1


def tell(folder: str, value: Any) -> None:
    """Leaves a JSON-able note of this process for the others; a later one replaces it."""
    key = f"{_PLACE}/{folder}/{process_index()}"
    store().key_value_set(key, json.dumps(value), allow_overwrite=True)


def told(folder: str) -> dict[int, Any]:
    """The notes in a folder that there are by now, by process."""
    found = store().key_value_dir_get(f"{_PLACE}/{folder}/")
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}


def store() -> Any:
    """The client of the coordination service, and of its key-value store."""
    return _state().client


def _state() -> Any:
    from jax._src.distributed import global_state  # JAX has no public way to its key-value store

    return global_state


def _read(key: str) -> Any:
    return json.loads(store().blocking_key_value_get(f"{_PLACE}/{key}", _DAY_MS))
