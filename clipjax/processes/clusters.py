"""Which launcher started this process, and as which of how many: read from the environment."""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

# Set by launch/local.sh and by hand; they go before what a launcher says.
COORDINATOR = "CLIPJAX_COORDINATOR"
NUM_PROCESSES = "CLIPJAX_NUM_PROCESSES"
PROCESS_ID = "CLIPJAX_PROCESS_ID"
_JAX_COORDINATOR = "JAX_COORDINATOR_ADDRESS"


class Launcher(NamedTuple):
    """The variables by which a launcher tells its processes who they are.

    Attributes:
        name: for a person.
        size: the number of processes; empty: it says none.
        rank: the number of this one, from 0.
        local_rank: its number among those of its host, from 0.
    """

    name: str
    size: str
    rank: str
    local_rank: str = ""


SLURM = Launcher("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
KUBERNETES = Launcher("an indexed job of Kubernetes", "", "JOB_COMPLETION_INDEX")
LAUNCHERS = (
    SLURM,
    Launcher(
        "Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
    ),
    Launcher("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    Launcher("MPICH or Intel MPI (PMI)", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    Launcher("PMIx", "", "PMIX_RANK"),
    Launcher("PALS", "", "PALS_RANKID", "PALS_LOCAL_RANKID"),
    Launcher("JSM", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK"),
    Launcher("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID"),
    Launcher("torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK"),
    KUBERNETES,
)

# JAX joins the hosts of a TPU slice and Open MPI up to 4 by these.
_JAX_MARKS = ("TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS", "OMPI_MCA_orte_hnp_uri")
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"
# JAX reads all of these, or does not know Slurm.
_JAX_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", SLURM.rank, SLURM.local_rank)


class _Said(NamedTuple):
    """What a launcher says of this process; None where it says nothing."""

    launcher: Launcher
    size: int | None
    rank: int | None


def find_cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` has to be told to join this process with the others.

    Returns:
        Its arguments, none of them where JAX finds all by itself; None for a process on its own.

    Raises:
        ValueError: the environment says that there are others, and not how to join them: each would
            train by itself, all into one workdir.
    """
    said = [found for launcher in LAUNCHERS if (found := _said(launcher, environment))]
    by_jax = any(environment.get(name) for name in _JAX_MARKS)
    by_jax |= len(environment.get(_TPU_HOSTS, "").split(",")) > 1
    by_user = COORDINATOR if environment.get(COORDINATOR) else _JAX_COORDINATOR
    all_known = _knows_all(environment, said)
    if environment.get(by_user) and (by_user == COORDINATOR or not (by_jax or all_known)):
        return _with_coordinator(by_user, environment, said)
    if given := [name for name in (NUM_PROCESSES, PROCESS_ID) if name in environment]:
        raise ValueError(f"{', '.join(given)} without {COORDINATOR}: set all three, or none")
    if by_jax:
        return {}
    if environment.get(_TPU_HOSTS):  # a slice of one host says so, whatever started its container
        said = [found for found in said if found.launcher is not KUBERNETES or found.rank]
    sizes = [found.size for found in said if found.size is not None]
    if not said or (sizes and max(sizes) <= 1 and not any(found.rank for found in said)):
        return None
    if not all_known:
        _refuse(said)
    # JAX's number of processes is SLURM_NTASKS, which may be the job's and not the step's.
    slurm = next((found for found in said if found.launcher is SLURM), None)
    return {"num_processes": slurm.size, **_gpus_of_task(environment)} if slurm else {}


def _gpus_of_task(environment: Mapping[str, str]) -> dict[str, list[int]]:
    """Which GPUs a task of Slurm takes: what it was bound to, or its equal part of its node's.

    JAX would take the one of the task's local rank: of one task a node the first alone, and one
    that is not there where each task sees only its own.
    """
    allotted = environment.get("SLURM_GPUS_ON_NODE", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(visible.split(",")) if visible else int(allotted) if allotted.isdecimal() else 0
    if not gpus or "JAX_LOCAL_DEVICE_IDS" in environment:
        return {}
    if allotted.isdecimal() and gpus < int(allotted):
        return {"local_device_ids": [*range(gpus)]}
    tasks = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if tasks is None or gpus % int(tasks[1]):
        return {}
    share, local = gpus // int(tasks[1]), _number(SLURM.local_rank, environment, 0)
    return {"local_device_ids": [*range(local * share, (local + 1) * share)]}


def _said(launcher: Launcher, environment: Mapping[str, str]) -> _Said | None:
    size = launcher.size or launcher.rank
    if launcher is SLURM and size not in environment and "SLURM_STEP_ID" in environment:
        size = "SLURM_NTASKS"  # outside of a step it is the job's, not this process's
    if size not in environment:
        return None
    return _Said(
        launcher,
        _number(size, environment, 1) if launcher.size else None,
        _number(launcher.rank, environment, 0) if launcher.rank in environment else None,
    )


def _number(name: str, environment: Mapping[str, str], lowest: int) -> int:
    text = environment[name].strip()
    if not text.isdecimal() or int(text) < lowest:
        raise ValueError(f"{name}={text!r}: expected a whole number, {lowest} or more")
    return int(text)


def _with_coordinator(
    name: str, environment: Mapping[str, str], said: list[_Said]
) -> dict[str, Any]:
    """The three numbers; what the user does not give, the launcher with the most processes says."""
    found = max(said, key=lambda s: s.size or 0, default=None)
    size = found.size if found else None
    rank = found.rank if found else None
    if NUM_PROCESSES in environment:
        size = _number(NUM_PROCESSES, environment, 1)
    if PROCESS_ID in environment:
        rank = _number(PROCESS_ID, environment, 0)
    missing = [n for n, value in ((NUM_PROCESSES, size), (PROCESS_ID, rank)) if value is None]
    if size is None or rank is None:
        raise ValueError(f"{name} is set but {', '.join(missing)} is not; set them all")
    address = environment[name]
    if not address.rpartition(":")[2].isdecimal() or ":" not in address:
        raise ValueError(f"{name}={address!r}: expected HOST:PORT")
    if rank >= size:
        raise ValueError(f"process {rank} of {size}: {PROCESS_ID} counts from 0 to {size - 1}")
    options = {"coordinator_address": address, "num_processes": size, "process_id": rank}
    local = found.launcher.local_rank if found and PROCESS_ID not in environment else ""
    if local in environment and "JAX_LOCAL_DEVICE_IDS" not in environment:
        # One GPU a process, as JAX has it for the launchers that it knows.
        options["local_device_ids"] = [_number(local, environment, 0)]
    return options


def _knows_all(environment: Mapping[str, str], said: list[_Said]) -> bool:
    """Whether JAX's own reading of Slurm or Kubernetes is what all the others say as well."""
    if {found.launcher for found in said} == {KUBERNETES}:
        return (
            "KUBERNETES_SERVICE_HOST" in environment
            and importlib.util.find_spec("kubernetes") is not None
        )
    slurm = next((found for found in said if found.launcher is SLURM), None)
    return (
        slurm is not None
        and all(name in environment for name in _JAX_SLURM)
        and all(found.size in (None, slurm.size) for found in said)
        and all(found.rank in (None, slurm.rank) for found in said)
    )


def _refuse(said: list[_Said]) -> NoReturn:
    found = max(said, key=lambda s: s.size or 0)
    size = f" of {found.size}" if found.size else ""
    rank = "one" if found.rank is None else f"process {found.rank}"
    variable = found.launcher.size or found.launcher.rank
    lacking = [COORDINATOR + "=HOST:PORT (of process 0)"]
    lacking += [NUM_PROCESSES] if found.size is None else []
    lacking += [PROCESS_ID] if found.rank is None else []
    raise ValueError(
        f"this is {rank}{size} by the variable {variable} of {found.launcher.name}, and how to join"
        f" the others is not known: each would train by itself. Set {' and '.join(lacking)} in "
        "all of them; or, if each is a run with a workdir of its own, give --distributed=off"
    )
