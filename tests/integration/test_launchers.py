"""The launch scripts against stand-ins for gcloud, srun and the run, which note what they get."""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from counting import HANGS_S, wait_until
from planned_runs import PIP, PYTHON3, Plan, programs

from clipjax.processes import exit_codes, exit_record, launching
from clipjax.processes.clusters import find_cluster

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_every_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


# A zone of Google's, as europe-west4-a; what a key or an account looks like.
NOBODYS = re.compile(r"\b[a-z]+-[a-z]+\d+-[a-z]\b|projects/|AIza|PRIVATE KEY|gserviceaccount")


def test_no_script_knows_a_project_a_key_or_a_zone():
    files = [path for path in (ROOT / "launch").iterdir() if path.is_file()]
    assert [(path.name, NOBODYS.findall(path.read_text(encoding="utf-8"))) for path in files] == [
        (path.name, []) for path in files
    ]
    assert NOBODYS.search("--zone=us-central2-b") and NOBODYS.search("x@y.iam.gserviceaccount.com")


LAUNCHERS = ("local", "slurm", "tpu_pod")


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_starts_again_what_the_table_says(plan, launcher):
    found, said = plan(launcher, "80@1 82@2 83@3 kill@4 1@5 0@6")
    assert (found, plan.starts) == (1, 5), said
    assert "137, ended by SIGKILL without saving; starting again, restart 1 since the" in said
    (plan.workdir / "starts").unlink()
    assert plan(launcher, "81@7 0@8")[0] == 81 and plan.starts == 1


@pytest.mark.parametrize("launcher", ["local", "slurm"])  # one process, one for each start
def test_restarts_without_a_newer_checkpoint_are_counted(plan, launcher):
    """Thrice step 2 is two restarts too many; those that went on before are forgotten."""
    found, said = plan(launcher, "80@1 82@2 kill@2 82@2 0@9")
    assert (found, plan.starts) == (82, 4), said
    assert "given up after 2 restarts since the checkpoint of step 2" in said


def test_restarts_are_counted_where_nothing_can_be_kept(plan):
    """A process is killed before there is a workdir; the launcher itself shows no traceback."""
    (plan.folder / "bin" / "clipjax").write_text("#!/usr/bin/env bash\nkill -9 $$\n")
    plan.workdir.rmdir()
    found, said = plan("local", "unused")
    assert found == 137 and said.count("starting again") == 2, said
    assert "given up after 2 restarts before a first checkpoint" in said
    assert not plan.workdir.exists() and "Traceback" not in said


@pytest.mark.parametrize("code", [*exit_codes.ENDINGS, 137, 2, 255])
def test_what_is_started_again_is_what_the_table_says(tmp_path, code):
    verdict = launching.judge([(0, code)], tmp_path, launch="me/0")
    again = exit_codes.ending(code).again
    assert verdict[:2] == (again, code) and again == (code in (80, 82, 83, 137))
    assert not launching.judge([(0, code)], tmp_path, launch="me/0", signalled=True).again
    assert not launching.judge([(0, code)], tmp_path, launch="me/0", restarts=0).again


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_launcher_that_is_told_to_stop_does_not_start_again(plan, launcher):
    process = plan.start(launcher, "wait@5 0@9")
    wait_until((plan.workdir / "waits").exists)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=HANGS_S)[1]
    assert (process.returncode, plan.starts) == (80, 1), said
    assert "the launcher was told to stop" in said


def test_what_comes_between_two_starts_is_heard(tmp_path, monkeypatch):
    """A signal while no process runs, or only the first of two: nobody could tell the next one."""
    command = ["touch", str(tmp_path / "started")]
    processes = launching.Local(1, command)
    processes.pass_on(signal.SIGTERM, None)
    assert processes.run("me/0") == [] and not list(tmp_path.iterdir())
    monkeypatch.setattr(launching.Local, "run", lambda self, launch: [])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert launching.local(["2", "--workdir=x"]) == exit_codes.PREEMPTED


def test_the_first_failure_in_time_is_reported(plan):
    code, said = plan("local", "late7/3@0", "2")
    assert code == 3 and "ended with 3 by process 1" in said
    # One that ended because of another did not fail first, whoever was quicker.
    code, said = plan("local", "83/late3@0", "2")
    assert code == 3 and "ended with 3 by process 1" in said


def test_a_lost_process_starts_all_again(plan):
    code, said = plan("local", "late83/kill@5 0@9", "2")
    assert code == 0 and "ended with 137 by process 1, ended by SIGKILL" in said
    assert plan.starts == 2 == len((plan.workdir / "starts1").read_text().split())


def test_a_stopped_process_keeps_nobody_waiting(plan):
    """The others miss it and end; what is stopped may never go on, nor end."""
    code, said = plan("local", "late83/stop@5 0@9", "2")
    assert code == 0 and "process 1 is stopped, and the others ended: killed" in said
    assert "ended with 137 by process 1, ended by SIGKILL" in said and plan.starts == 2


def test_the_lead_says_how_it_ended_before_it_was_aborted(tmp_path, monkeypatch):
    monkeypatch.setenv(exit_record.LAUNCH, "me/0")
    exit_record.open_record(tmp_path, is_lead=True)
    exit_record.begin(3)
    exit_record.end(81, "not finite")
    verdict = launching.judge([(0, 134), (1, 134)], tmp_path, launch="me/0", restarts=2)
    assert verdict[:2] == (False, 81) and verdict.why.endswith(": not finite")
    # What stands there from an earlier start says nothing of this one.
    assert launching.judge([(0, 134)], tmp_path, launch="me/1", restarts=2)[:2] == (True, 134)


def test_a_run_that_still_goes_on_is_not_started_a_second_time(tmp_path, monkeypatch):
    """The connection to a pod broke, the run did not."""
    monkeypatch.setenv(exit_record.LAUNCH, "me/0")
    exit_record.open_record(tmp_path, is_lead=True)
    exit_record.begin(0)
    verdict = launching.judge([], tmp_path, launch="me/0", fallback=255)
    assert verdict[:2] == (False, 255) and f"process {os.getpid()} of the run still" in verdict.why


@pytest.mark.parametrize(
    ("flags", "workdir"),
    [
        (["--workdir=a", "--config", "x"], "a"),
        (["--workdir", "a", "--workdir=b"], "b"),
        (["--config=x"], None),
        (["--workdir"], None),
    ],
)
def test_the_workdir_among_the_flags(flags, workdir):
    assert launching.workdir_of(flags) == (workdir and Path(workdir))


PAGE = ROOT / "docs" / "launching.md"


def test_the_page_shows_the_dry_runs():
    """What they print is what is run: below, and in test_tpu_pod.py."""
    page = PAGE.read_text(encoding="utf-8")
    env = {**os.environ, "CLIPJAX_PORT": "12345", "CLIPJAX_COMMAND": "clipjax"}
    del env["CLIPJAX_RESTARTS"]
    for line in re.findall(r"^export (.+)$", page, re.MULTILINE):
        words = ["SETUP=SETUP"] if line.startswith("SETUP=") else shlex.split(line)
        env |= dict(word.split("=", 1) for word in words)
    pattern = r"^```console\n\$ ((?:\w+=\S+ )*)(bash .*)\n((?:.+\n)+)```$"
    blocks = re.findall(pattern, page, re.MULTILINE)
    assert len(blocks) == page.count("```console") == 7
    for assigned, command, expected in blocks:
        env_of_call = env | dict(word.split("=", 1) for word in shlex.split(assigned))
        done = subprocess.run(
            command.split(), cwd=ROOT, env=env_of_call, capture_output=True, text=True, check=True
        )
        found = done.stdout.replace(str(ROOT), "~/clipjax")
        found = re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", found)
        found = re.sub(r"my-pod-\d{8}T\d{6}Z-\d+", "my-pod-START", found)
        assert re.sub(r" +$", "", found, flags=re.MULTILINE) == expected, command


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_dry_run_prints_what_is_run(tmp_path, launcher):
    log = tmp_path / "log"
    note = f'printf "%s\\0" {{}} "$@" "" >>{log}'
    cluster = (f'"{name}=${name}"' for name in ("CLIPJAX_COORDINATOR", "CLIPJAX_NUM_PROCESSES"))
    bodies = {
        "srun": note.format("srun"),
        "clipjax": note.format(
            " ".join([*cluster, '"CLIPJAX_PROCESS_ID=$CLIPJAX_PROCESS_ID"', "clipjax"])
        ),
        "activate": "",
    }
    folder = programs(tmp_path / "bin", bodies)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "VENV": str(tmp_path)}
    env |= {"CLIPJAX_PORT": "12345"}
    flags = ["--config", "a b/{0..9}.py", '--note=it\'s "so"; $X', "--workdir", str(tmp_path)]
    flags = ["2", *flags] if launcher == "local" else flags

    def run(*words):
        command = ["bash", ROOT / "launch" / f"{launcher}.sh", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGS_S)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]

    printed = run("--dry_run", *flags)
    assert not log.exists()
    run(*flags)
    found = [call.split("\0") for call in log.read_text().split("\0\0") if call]
    if launcher == "slurm":  # a run that ended with 0 is not judged
        printed.pop()
    assert sorted(found) == printed


# What a task of Slurm sees, by how the GPUs of two nodes were asked for.
@pytest.mark.parametrize(
    ("flags", "bound", "gpus"),
    [
        ((), False, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (("--ntasks-per-node=1",), False, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (("--ntasks-per-node=2",), False, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (("--gpus-per-node=4", "--ntasks-per-node=4"), False, [[0], [1], [2], [3]]),
        (("--ntasks-per-node=2",), True, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_each_task_of_slurm_takes_its_gpus(flags, bound, gpus):
    head = (ROOT / "launch" / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", head, re.MULTILINE))
    assert asked["gpu-bind"] == "none"
    asked |= dict(flag.removeprefix("--").split("=") for flag in flags)
    tasks, on_node = int(asked["ntasks-per-node"]), int(asked["gpus-per-node"])
    found = []
    for rank in range(2 * tasks):
        visible = range(on_node // tasks if bound else on_node)
        environment = {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_STEP_NUM_TASKS": str(2 * tasks),
            "SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x2)",
            "SLURM_NTASKS": str(2 * tasks),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % tasks),
            "SLURM_GPUS_ON_NODE": str(on_node),
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, visible)),
        }
        options = find_cluster(environment)
        assert options["num_processes"] == 2 * tasks
        found.append(options["local_device_ids"])
        assert "local_device_ids" not in find_cluster({**environment, "JAX_LOCAL_DEVICE_IDS": "0"})
    assert found == 2 * gpus


def test_the_manifest_for_gke_starts_again_what_the_table_says():
    jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text(encoding="utf-8"))
    assert (jobset["kind"], jobset["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    (failing,) = job["podFailurePolicy"]["rules"]
    assert (failing["action"], failing["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert failing["onExitCodes"]["containerName"] == container["name"]
    given_up = set(failing["onExitCodes"]["values"])
    for code in (*exit_codes.ENDINGS, 2, 126, 127, 137, 143):
        assert (code in given_up) == (code != 0 and not exit_codes.ending(code).again), code
    # The hosts of a slice are as many as its chips need, and each mount is a volume.
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    limits, requests = (container["resources"][kind] for kind in ("limits", "requests"))
    assert limits == requests and chips == job["parallelism"] * limits["google.com/tpu"]
    (mount,) = container["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert launching.workdir_of(container["args"]).is_relative_to(mount["mountPath"])
    # What GKE and Kubernetes say to a pod has it joined, of one slice and of several.
    told = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1", "JOB_COMPLETION_INDEX": "1"}
    several = {"MEGASCALE_COORDINATOR_ADDRESS": "a", "MEGASCALE_NUM_SLICES": "2"}
    assert find_cluster(told) == find_cluster({**told, **several}) == {}
    assert container["command"] == ["clipjax", "train", "--distributed=on"]


def test_the_page_has_the_table():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:\d+|128 \+ N) \|.*$", page, re.MULTILINE)
    assert rows == exit_codes.table()


def test_the_record_of_a_run(train_here, reference, tmp_path):
    """One that fails before its first step; the reference has ended before."""
    shutil.copytree(reference, tmp_path / "run")
    assert exit_record.read(tmp_path / "run")["state"] == "ended"
    (tmp_path / "run" / exit_record.NAME).unlink()
    flags = ("--config.total_steps=16", "--config.allow_config_change=true")
    train_here(tmp_path / "run", *flags)
    failed = exit_record.read(tmp_path / "run")
    assert (failed["state"], failed["code"]) == ("ended", 1)
    assert "stands at step" in failed["reason"]
    train_here(tmp_path / "none", "--config.data.source=tar:/nowhere/*.tar")
    assert not (tmp_path / "none").exists()


def test_sigkill_leaves_the_record_of_the_start(plan):
    assert plan("local", "kill@5", CLIPJAX_RESTARTS="0")[0] == 137
    record = exit_record.read(plan.workdir)
    assert (record["state"], record["code"], record["step"]) == ("running", None, 0)


@pytest.fixture
def checkout(tmp_path):
    """Calls a script of `launch/` in a checkout of its own; returns the lines that it prints."""
    (tmp_path / "launch").mkdir()
    for name in ("environment", "test", "test_lowest"):
        shutil.copy2(ROOT / f"launch/{name}.sh", tmp_path / "launch")
    shutil.copy2(ROOT / "setup.py", tmp_path)
    stand_ins = {"python3": PYTHON3, "pip": PIP, "ruff": "#!/bin/sh", "mypy": "#!/bin/sh"}
    programs(tmp_path / "bin", stand_ins)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PIP": str(tmp_path / "bin" / "pip"),
        "REAL": sys.executable,
    }

    def call(script, python, **more):
        env_of_call = {**env, "FOR": python, **more}
        command = ["bash", f"launch/{script}.sh", "-m", "slow"]
        done = subprocess.run(
            command, cwd=tmp_path, env=env_of_call, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


def test_the_environment_is_made_anew_for_another_python_and_once_for_each(checkout, tmp_path):
    def made(python, extra="test"):
        return [line.split()[0] for line in checkout("environment", python, EXTRA=extra)]

    anew = ["making", "installing", "pip"]
    assert made("cpython-311") == anew
    assert made("cpython-311") == []
    assert made("cpython-311", "demo") == anew[1:]
    assert made("cpython-313") == anew
    assert made("cpython-313") == []
    with open(tmp_path / "setup.py", "a", encoding="utf-8") as file:
        file.write("# changed")
    assert made("cpython-313") == anew[1:]


def test_the_lowest_versions_are_those_of_setup(checkout):
    _, _, installed, tested = checkout("test_lowest", "cpython-311")
    assert installed.startswith("pip .[test] absl-py==2.1 ") and " jax==0.10.2 " in installed
    assert len(installed.split()) >= 35  # one for each requirement
    assert tested.startswith("-m pytest ") and tested.endswith(" -m slow")
    _, _, installed, _ = checkout("test", "cpython-311")
    assert installed == "pip .[test]"
