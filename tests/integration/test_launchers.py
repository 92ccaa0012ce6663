"""The launch scripts against stand-ins for gcloud, srun and the run, which note what they get."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from counting import HANGS_S

from clipjax.processes import exit_codes, exit_record, launching

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture
def run(tmp_path):
    """Runs a script with commands that log their arguments and end with a given code."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    log = tmp_path / "log"

    def call(script, *args, fakes, env=None):
        log.write_text("")
        for name, body in fakes.items():
            path = bin_dir / name
            path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >>"{log}"\n{body}\n')
            path.chmod(0o755)
        environment = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", **(env or {})}
        done = subprocess.run(
            ["bash", ROOT / "launch" / script, *args],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
            cwd=tmp_path,
        )
        return done, log.read_text().splitlines()

    return call


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_every_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


POD = {"NAME": "pod", "ZONE": "z", "SKIP_SETUP": "1"}


def test_the_pod_gets_the_command_with_every_argument_quoted(run):
    done, calls = run(
        "tpu_pod.sh",
        "--config=configs/x.py:source=tar:/d/{0..9}.tar",
        "--note=a b; touch /tmp/no",
        fakes={"gcloud": "exit 0"},
        env=POD,
    )
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert "tpu-vm ssh pod --zone=z --worker=all" in call
    assert "clipjax train --distributed=on" in call
    assert r"a\ b\;\ touch\ /tmp/no" in call


def test_the_pod_needs_a_name(run):
    done, calls = run("tpu_pod.sh", fakes={"gcloud": "exit 0"}, env={"ZONE": "z"})
    assert done.returncode != 0 and "NAME" in done.stderr and not calls


def test_the_setup_ships_what_is_committed(run):
    done, calls = run(
        "tpu_pod.sh", "--x", fakes={"gcloud": "exit 0"}, env={**POD, "SKIP_SETUP": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "scp" in calls[0] and "clipjax.tar.gz" in calls[0]
    assert "EXTRA=tpu bash launch/environment.sh" in "\n".join(calls)


# A run that does what $PLAN says: of each start, its end and the step of its newest checkpoint. An
# end is an exit code, which exit.json has, too; or `kill` and `stop`, which leave what stood there.
RUN = """
import os, pathlib, signal, sys, time
from clipjax.processes import exit_record
workdir = pathlib.Path(sys.argv[-1])
number = int(os.environ.get("CLIPJAX_PROCESS_ID", 0))
with open(workdir / f"starts{number or ''}", "a") as file:
    file.write(os.environ["CLIPJAX_LAUNCH"] + "\\n")
start = len((workdir / f"starts{number or ''}").read_text().split())
plan = os.environ["PLAN"].split()
end, step = plan[min(start, len(plan)) - 1].split("@")
ends = end.split("/")
end = ends[min(number, len(ends) - 1)]
exit_record.open_record(workdir, is_lead=number == 0)
exit_record.begin(0)
if int(step):
    (workdir / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
    (workdir / "checkpoints" / step / "manifest.json").write_text("{}")
if end.startswith("late"):
    time.sleep(0.3)
    end = end.removeprefix("late")
if end == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (exit_record.end(80), os._exit(80)))
    (workdir / "waits").touch()
    time.sleep(60)
if end == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
exit_record.at(int(step))
exit_record.end(int(end), "as planned")
os._exit(int(end))
"""
# The pod is this folder. gcloud's own code says nothing of the run's.
POD_HERE = 'bash -c "${@: -1}" || exit 255'
LAUNCHERS = ("local", "slurm", "tpu_pod")


class Plan:
    """Runs a launcher with a run that goes as planned."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "run"
        self.workdir.mkdir()
        (folder / "clipjax" / ".venv" / "bin").mkdir(parents=True)
        (folder / "clipjax" / ".venv" / "bin" / "activate").write_text("")
        (folder / "run.py").write_text(RUN)
        bin_dir = folder / "bin"
        bin_dir.mkdir()
        for name, body in {
            "clipjax": f'exec {sys.executable} -S {folder / "run.py"} "$@"',
            "python": f'exec {sys.executable} "$@"',
            "gcloud": POD_HERE,
            "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
            "scontrol": f'echo "$*" >>{folder / "requeued"}',
        }.items():
            (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_dir / name).chmod(0o755)
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "CLIPJAX_RESTARTS": "2",
            "VENV": str(folder / "clipjax" / ".venv"),
            "SLURM_JOB_ID": "7",
            **POD,
        }

    def start(self, launcher, plan, processes="1", **more):
        command = ["bash", ROOT / "launch" / f"{launcher}.sh"]
        command += [processes] if launcher == "local" else []
        return subprocess.Popen(
            [*command, "--config=x", "--workdir", self.workdir],
            env={**self.env, "PLAN": plan, **more},
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, launcher, plan, processes="1", **more):
        """Runs it to the end; exit code and what it said."""
        said = ""
        for number in range(20):  # Slurm starts a job again that was put back
            requeued = self.folder / "requeued"
            requeued.unlink(missing_ok=True)
            process = self.start(launcher, plan, processes, SLURM_RESTART_COUNT=str(number), **more)
            said += process.communicate(timeout=HANGS_S)[1]
            if not requeued.exists():
                break
            assert requeued.read_text() == "requeue 7\n"
        return process.returncode, said

    @property
    def starts(self):
        return len((self.workdir / "starts").read_text().split())


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
    while not (plan.workdir / "waits").exists():
        time.sleep(0.02)
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


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
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


# Stand-ins for python3 and for the python of the environment that it makes; $FOR is what the
# extension modules of the first are for.
PYTHON3 = r"""#!/usr/bin/env bash
case "$*" in
  *version_info*) exit 0 ;;
  *EXT_SUFFIX*) echo "$FOR" ;;
  --version) echo "Python 3" ;;
  "-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin" && echo "$FOR" >"$4/for" && cp "$PIP" "$4/bin/python" ;;
  *) exec "$REAL" "$@" ;;
esac
"""
PIP = r"""#!/usr/bin/env bash
case "$*" in
  *EXT_SUFFIX*) cat "$(dirname "$0")/../for" ;;
  "-m pip install "*) echo "pip ${@: -1}" $(cat ${PIP_CONSTRAINT:-/dev/null}) ;;
  "-m pytest "*) echo "$*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """Calls a script of `launch/` in a checkout of its own; returns the lines that it prints."""
    (tmp_path / "launch").mkdir()
    for name in ("environment", "test", "test_lowest"):
        shutil.copy2(ROOT / f"launch/{name}.sh", tmp_path / "launch")
    shutil.copy2(ROOT / "setup.py", tmp_path)
    (tmp_path / "bin").mkdir()
    stand_ins = {"python3": PYTHON3, "pip": PIP, "ruff": "#!/bin/sh", "mypy": "#!/bin/sh"}
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
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
