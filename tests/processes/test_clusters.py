"""The environment of each launcher: joined, told how to join, or refused; never N runs of one."""

from pathlib import Path

import pytest

from clipjax.processes.clusters import LAUNCHERS, find_cluster

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "2",
}
COORDINATOR = {"CLIPJAX_COORDINATOR": "host0:1234"}
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "host0"}
POD = {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def given(size, rank, local=None):
    options = {"coordinator_address": "host0:1234", "num_processes": size, "process_id": rank}
    return options if local is None else options | {"local_device_ids": [local]}


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the script of a job, outside a step
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            None,
        ),  # `salloc -n 8`'s shell
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}, None),
        ({"RANK": "3"}, None),  # a word that others use, too
        ({"TPU_WORKER_HOSTNAMES": "localhost", **POD}, None),
        (SLURM, {"num_processes": 8}),
        ({**SLURM, "SLURM_NTASKS": "16"}, {"num_processes": 8}),  # a step smaller than its job
        ({**SLURM, "PMI_SIZE": "8", "PMI_RANK": "3", "PMIX_RANK": "3"}, {"num_processes": 8}),
        ({"TPU_WORKER_HOSTNAMES": "a,b", **POD}, {}),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", **OPEN_MPI}, {}),
        ({**COORDINATOR, "CLIPJAX_NUM_PROCESSES": "4", "CLIPJAX_PROCESS_ID": "3"}, given(4, 3)),
        ({**COORDINATOR, **OPEN_MPI}, given(4, 2, 1)),
        ({**COORDINATOR, **OPEN_MPI, **SLURM, "SLURM_STEP_NUM_TASKS": "2"}, given(4, 2, 1)),
        ({**COORDINATOR, **TORCHRUN}, given(2, 1, 0)),
        ({**COORDINATOR, **TORCHRUN, "JAX_LOCAL_DEVICE_IDS": "0,1"}, given(2, 1)),
        ({**COORDINATOR, **POD, "CLIPJAX_NUM_PROCESSES": "2"}, given(2, 0)),
        ({"JAX_COORDINATOR_ADDRESS": "host0:1234", **OPEN_MPI}, given(4, 2, 1)),
        ({"JAX_COORDINATOR_ADDRESS": "host0:1234", **SLURM}, {"num_processes": 8}),
    ],
)
def test_joined_or_alone(environment, options):
    assert find_cluster(environment) == options


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (OPEN_MPI, r"process 2 of 4 .* OMPI_COMM_WORLD_SIZE of Open MPI.*--distributed=off"),
        (TORCHRUN, "process 1 of 2 .* torchrun"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "process 0 of 2 .*PMI"),
        ({"PMIX_RANK": "0"}, "CLIPJAX_COORDINATOR=.*and CLIPJAX_NUM_PROCESSES in all"),
        ({"WORLD_SIZE": "4"}, "one of 4 .*and CLIPJAX_PROCESS_ID in all"),
        (POD, "JOB_COMPLETION_INDEX of an indexed job of Kubernetes"),
        ({**POD, "TPU_WORKER_HOSTNAMES": "localhost", "JOB_COMPLETION_INDEX": "1"}, "process 1"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "one of 8 .* Slurm"),
        # mpirun inside of a job: each daemon of Slurm starts several, which have its numbers.
        ({**SLURM, **OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "16"}, "process 2 of 16 .* Open MPI"),
        ({"CLIPJAX_NUM_PROCESSES": "2", "CLIPJAX_PROCESS_ID": "0"}, "without CLIPJAX_COORDINATOR"),
        (COORDINATOR, "CLIPJAX_NUM_PROCESSES, CLIPJAX_PROCESS_ID is not; set them all"),
        (
            {**COORDINATOR, "CLIPJAX_NUM_PROCESSES": "x", "CLIPJAX_PROCESS_ID": "0"},
            "='x': expected",
        ),
        ({**COORDINATOR, "CLIPJAX_NUM_PROCESSES": "2", "CLIPJAX_PROCESS_ID": "2"}, "from 0 to 1"),
        ({"CLIPJAX_COORDINATOR": "host0", **OPEN_MPI}, "expected HOST:PORT"),
    ],
)
def test_refused(environment, message):
    with pytest.raises(ValueError, match=message):
        find_cluster(environment)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.name)
def test_no_launcher_starts_two_trainings_of_one_run(launcher):
    """By its own variables alone each is joined or refused, whichever of its processes it is."""
    for rank in "01":
        environment = {launcher.rank: rank} | ({launcher.size: "2"} if launcher.size else {})
        with pytest.raises(ValueError, match="each would train by itself"):
            find_cluster(environment)


def test_the_command_refuses_before_the_workdir_is_there(command, monkeypatch, tmp_path):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    done = command("train", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}")
    assert done.code == 1 and "each would train by itself" in done.err
    assert not (tmp_path / "run").exists()


def test_the_page_has_the_variables():
    page = (Path(__file__).parents[2] / "docs" / "launching.md").read_text(encoding="utf-8")
    for launcher in LAUNCHERS:
        assert f"`{launcher.size or launcher.rank}`" in page, launcher.name
