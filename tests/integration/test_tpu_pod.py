"""launch/tpu_pod.sh against a cloud that is a folder, with two workers a slice."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from counting import HANGS_S, wait_until
from planned_runs import PIP, PYTHON3, ROOT, Plan, programs

QUEUED = {"QUEUED": "1", "SPOT": "1", "STATES": "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"}
# What is different in each run: the start's name, the temporary folder, the commit.
CHANGING = (
    (r"pod-\d{8}T\d{6}Z-\d+", "pod-START"),
    (r"/tmp/[\w.-]+/(code\.tar\.gz|lock)", r"/tmp/\1"),
    (r"\b[0-9a-f]{40}\b", "COMMIT"),
)


class Cloud(Plan):
    """A checkout, and an empty cloud."""

    def __init__(self, folder):
        super().__init__(folder)
        shutil.rmtree(folder / "hosts")
        (folder / "states").unlink()
        self.started = []
        self.checkout = folder / "my checkout"
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        shutil.copy2(ROOT / "setup.py", self.checkout)
        self.git("init", "-q")
        self.commit = self.commit_all()
        # The workers' run: its words, then what the plan says.
        words = f'printf "%s\\0" "$@" "" >>{folder / "words"}\n'
        run = (folder / "bin" / "clipjax").read_text().replace("exec ", words + "exec ", 1)
        programs(folder / "bin", {"python3": PYTHON3, "pip": PIP, "clipjax": run})
        pip = str(folder / "bin" / "pip")
        real = (folder / "bin" / "python").read_text().split()[-2]
        self.env |= {"PIP": pip, "REAL": real, "FOR": "cpython-311", "SKIP_SETUP": ""}
        self.env |= {"TYPE": "v4-16", "VERSION": "base", "TMPDIR": "/tmp"}

    def git(self, *words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", self.checkout, *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit_all(self):
        self.git("add", ".")
        self.git("commit", "-qm", "x")
        return self.git("rev-parse", "HEAD")

    def start(self, *words, **env):
        process = subprocess.Popen(
            ["bash", self.checkout / "launch" / "tpu_pod.sh", *map(str, words)],
            env={**self.env, **env},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def call(self, *words, code=0, answer="", **env):
        """Runs a verb to its end; what it printed and said."""
        process = self.start(*words, **env)
        out, said = process.communicate(answer, timeout=HANGS_S)
        assert process.returncode == code, said
        return out, said

    def recorded(self):
        """The words of each call of gcloud since the last time."""
        calls = (self.folder / "log").read_bytes().decode().split("\0\0")
        (self.folder / "log").write_bytes(b"")
        return [["gcloud", *call.split("\0")] for call in calls if call]

    def until_all_wait(self, workers=2):
        wait_until(lambda: len([*self.workdir.glob("waits*")]) == workers)

    def take_away(self, state):
        """The machines are lost, in the middle of what they do."""
        pids = [int(p.read_text()) for p in self.folder.glob("hosts/*/*/clipjax-pod/run/pid")]
        shutil.rmtree(self.folder / "hosts")
        (self.folder / "states").write_text(f"{state}\n")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for process in cloud.started:
        process.kill()
    wait_until(lambda: not killed(processes_of(tmp_path)))  # they hold its pipes open
    for process in cloud.started:
        process.communicate()


def processes_of(folder, word=""):
    """Ids of the processes of a test, with a word among theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended this moment
        if str(folder) in text and word in text:
            found.append(int(path.parent.name))
    return found


def killed(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def plainly(calls):
    """Calls without what is different in each run, and without waiting."""
    text = json.dumps(calls)
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    found = [call for call in json.loads(text) if call[0] == "gcloud"]
    return [call for i, call in enumerate(found) if call != found[i - 1] or i == 0]


FLAGS = ("--config=configs/x.py:source=tar:/a b/{0..9}.tar", '--note=it\'s "so"; touch /tmp/no $X')


@pytest.mark.parametrize(
    "kind", [{}, QUEUED, {"SLICES": "2", "STATES": "ACTIVE", "PROJECT": "p"}], ids=str
)
def test_a_dry_run_prints_what_is_run(cloud, kind):
    """From nothing to nothing; what is printed is a shell's way to say the words that are run."""
    flags = (*FLAGS, "--workdir", cloud.workdir)
    lock = cloud.folder / "tpu.lock"
    lock.write_text("# clipjax[tpu] for cpython-311\njax==0.10.2\n")
    more = {**kind, "PLAN": "0@3", "LOCK": str(lock), "SETUP": "mkdir 'a b'; touch \"a b/c\""}
    for verb, answer in (
        (("create",), ""),
        (("run", *flags), ""),
        (("status",), ""),
        (("stop",), ""),
        (("each", "echo", "it's all"), ""),
        (("delete",), "pod\n"),
    ):
        printed, _ = cloud.call("--dry_run", *verb, **more)
        assert not (cloud.folder / "log").exists() or not cloud.recorded()
        out, _ = cloud.call(*verb, answer=answer, **more)
        expected = [shlex.split(line) for line in printed.splitlines()]
        found = plainly(cloud.recorded())
        if "SLICES" in kind:  # side by side
            expected, found = sorted(expected), sorted(found)
        assert plainly(expected) == found
        assert all(
            (word in call) == ("PROJECT" in kind) for call in found for word in ["--project=p"]
        )
        if verb[0] == "each":
            assert set(out.splitlines()) == {"it's all"}
        if verb[0] == "run":
            homes = sorted(cloud.folder.glob("hosts/*/*"))
            assert len(homes) == 2 * int(kind.get("SLICES", 1))
            for home in homes:
                assert (home / "a b" / "c").exists()
                assert (home / "clipjax-pod/code/COMMIT").read_text() == cloud.commit + "\n"
                assert (home / "clipjax-pod/lock").read_bytes() == lock.read_bytes()
            words = (cloud.folder / "words").read_bytes().decode().split("\0\0")[:-1]
            assert [w.split("\0") for w in words] == len(homes) * [
                ["train", "--distributed=on", *map(str, flags)]
            ]
            assert len({p.read_text() for p in cloud.workdir.glob("starts*")}) == 1
    assert not (cloud.folder / "hosts").exists()


@pytest.mark.parametrize(("kind", "state"), [(QUEUED, "SUSPENDED"), ({}, "PREEMPTED")], ids=str)
def test_what_is_taken_away_is_made_anew_and_goes_on(cloud, kind, state):
    cloud.call("create", **kind)
    cloud.recorded()
    run = cloud.start("run", "--workdir", cloud.workdir, PLAN="wait@5 0@9", **kind)
    cloud.until_all_wait()
    (cloud.checkout / "setup.py").write_text("# another")  # by the next morning
    assert cloud.commit_all() != cloud.commit
    cloud.take_away(state)
    said = run.communicate(timeout=HANGS_S)[1]
    assert run.returncode == 0, said
    assert "pod was taken away" in said and "restart 1 since the checkpoint of step 5" in said
    verbs = [call[4] for call in cloud.recorded() if call[4] not in ("ssh", "describe")]
    assert verbs == ["scp", "delete", "create", "scp"]
    starts = (cloud.workdir / "starts").read_text().split()
    assert [start.rpartition("/")[2] for start in starts] == ["0", "1"]
    commits = {p.read_text() for p in cloud.folder.glob("hosts/*/*/clipjax-pod/code/COMMIT")}
    assert commits == {cloud.commit + "\n"}
    assert "costs until it is deleted" in said


def test_what_is_taken_away_stays_so_without_restarts(cloud):
    cloud.call("create")
    env = {"PLAN": "wait@5 0@9", "CLIPJAX_RESTARTS": "0"}
    run = cloud.start("run", "--workdir", cloud.workdir, **env)
    cloud.until_all_wait()
    cloud.take_away("PREEMPTED")
    assert run.wait(HANGS_S) == 83 and cloud.starts == 1
    assert "delete" not in [call[4] for call in cloud.recorded()]


def test_a_broken_connection_ends_nothing(cloud):
    """Who watches is one thing, the run another: it is shown again, and stopped by its own verb."""
    cloud.call("create")
    run = cloud.start("run", "--workdir", cloud.workdir, PLAN="wait@5 0@9")
    cloud.until_all_wait()
    said = cloud.call("run", "--workdir", cloud.workdir, PLAN="0@9", code=255)[1]
    assert "still goes on: `logs` shows it, `stop` ends it" in said
    wait_until(lambda: killed(processes_of(cloud.folder, "tail")))
    out, _ = cloud.call("status")
    assert out.count("goes on as process") == 2
    run.kill()  # the terminal is closed
    run.wait()
    assert cloud.call("stop")[0].count("asked to save its step") == 2
    cloud.call("logs")
    out, _ = cloud.call("status")
    assert out.count("ended with 80") == 2 and cloud.starts == 1
    # The number of the run's process is another one's by now: that one is not the launcher's.
    with subprocess.Popen(["sleep", "60"]) as another:
        for path in cloud.folder.glob("hosts/*/*/clipjax-pod/run/pid"):
            path.write_text(f"{another.pid}\n")
        assert cloud.call("stop")[0] == "" and another.poll() is None
        another.kill()


def test_ctrl_c_saves_and_does_not_start_again(cloud):
    cloud.call("create", SLICES="2", STATES="ACTIVE")
    run = cloud.start("run", "--workdir", cloud.workdir, PLAN="wait@5 0@9", SLICES="2")
    cloud.until_all_wait(4)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=HANGS_S)[1]
    assert (run.returncode, cloud.starts) == (80, 1), said
    assert "the launcher was told to stop" in said


def test_an_end_that_nobody_has_judged_is_not_started_again(cloud):
    """A call that succeeds and says nothing, as it may when the connection is lost."""
    cloud.call("create")
    gcloud = cloud.folder / "bin" / "gcloud"
    first, rest = gcloud.read_text().split("\n", 1)
    gcloud.write_text(f'{first}\n[[ "$*" != *" judge "* ]] || exit 0\n{rest}')
    said = cloud.call("run", "--workdir", cloud.workdir, PLAN="0@9", code=1)[1]
    assert "does not say how the run ended" in said and cloud.starts == 1


def test_a_start_that_ends_before_its_process_is_no_wait_for_ever(cloud):
    """As where the machine's folder is lost, or its disk full, in the middle of a start."""
    cloud.call("create")
    programs(cloud.folder / "bin", {"setsid": "#!/bin/bash\nexit 1\n"})
    said = cloud.call("run", "--workdir", cloud.workdir, PLAN="0@9", code=1)[1]
    assert said.count("did not start") == 2 and not list(cloud.workdir.glob("starts*"))


def test_what_is_not_started_is_said_and_nothing_is_left(cloud):
    assert "set NAME" in cloud.call("create", code=1, NAME="")[1]
    assert "set TYPE" in cloud.call("create", code=1, TYPE="")[1]
    for flags in ((), ("--workdir=runs/x",), ("--workdir", "runs/x"), ("--config=/x",)):
        assert "--workdir=/DIR" in cloud.call("run", *flags, code=2)[1]
    assert "no such commit" in cloud.call("install", code=2, SHA="nope")[1]
    assert "create" in cloud.call("crate", code=2)[1] and not (cloud.folder / "log").exists()
    said = cloud.call("create", code=1, **{**QUEUED, "STATES": "PROVISIONING FAILED"})[1]
    assert "FAILED" in said and "`delete` takes it away" in said
    # It costs as long as it stands, so nobody deletes it by mistake.
    for answer in ("", "\n", "yes\n", "po\n"):
        said = cloud.call("delete", code=1, answer=answer, **QUEUED)[1]
        assert "costs as long as it stands" in said and "not deleted" in said
    cloud.recorded()
    cloud.call("delete", answer="pod\n", **QUEUED)
    assert cloud.recorded()[-1][4:] == ["delete", "pod", "--zone=z", "--force", "--quiet"]
    # One worker cannot start; the other is stopped, and nobody waits for it.
    cloud.call("create")
    home = cloud.folder / "hosts" / "pod" / "1" / "clipjax-pod"
    (home / "run").mkdir(parents=True)
    (home / "run" / "launch").mkdir()
    cloud.call("run", "--workdir", cloud.workdir, PLAN="wait@5", code=1)
    # It was asked to end, and saves its step.
    wait_until(lambda: not processes_of(cloud.folder, "run.py"))


def test_a_lock_is_of_what_stands_and_installs_that_alone(cloud):
    cloud.call("create")
    cloud.call("install")
    lock = cloud.call("lock")[0]
    assert lock == "# clipjax[tpu] for cpython-311\njax==0.10.2\nlibtpu==0.0.42\n"
    (cloud.folder / "tpu.lock").write_text(lock)
    out, _ = cloud.call("install", LOCK="tpu.lock")
    each = ("installing clipjax[tpu] by ../lock", "pip jax==0.10.2 libtpu==0.0.42", "pip .")
    assert sorted(out.splitlines()) == sorted(2 * each)
    assert "installing" not in cloud.call("install", LOCK="tpu.lock")[0]
    (cloud.folder / "tpu.lock").write_text(lock.replace("311", "313"))
    _, said = cloud.call("install", LOCK="tpu.lock", code=255)
    assert "cpython-313', here that would be '# clipjax[tpu] for cpython-311'" in said
