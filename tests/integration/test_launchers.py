"""The launch scripts against stand-ins for gcloud and srun that write down what they get."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from counting import HANGS_S

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


def test_a_preempted_pod_is_started_again_and_a_failed_one_is_not(run):
    done, calls = run("tpu_pod.sh", "--x", fakes={"gcloud": "exit 80"}, env={**POD, "RETRIES": "2"})
    assert done.returncode == 80 and len(calls) == 3
    done, calls = run("tpu_pod.sh", "--x", fakes={"gcloud": "exit 1"}, env=POD)
    assert done.returncode == 1 and len(calls) == 1


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


def test_slurm_requeues_a_preempted_job_only(run, tmp_path):
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text("")
    env = {"VENV": str(tmp_path / "venv"), "SLURM_JOB_ID": "7"}
    for code, requeued in ((80, True), (1, False), (0, False)):
        done, calls = run(
            "slurm.sh", "--x=1", fakes={"srun": f"exit {code}", "scontrol": "exit 0"}, env=env
        )
        assert done.returncode == code
        assert "clipjax train --x=1" in calls[0]
        assert ("scontrol requeue 7" in calls) is requeued


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
    assert installed.startswith("pip .[test] absl-py==2.1 ") and " jax==0.10 " in installed
    assert len(installed.split()) >= 35  # one for each requirement
    assert tested.startswith("-m pytest ") and tested.endswith(" -m slow")
    _, _, installed, _ = checkout("test", "cpython-311")
    assert installed == "pip .[test]"
