"""Runs that go as planned under a launcher, and stand-ins for what a launcher calls."""

import os
import subprocess
import sys
from pathlib import Path

from counting import HANGS_S

ROOT = Path(__file__).parent.parent.parent

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
    (workdir / f"waits{number or ''}").touch()
    time.sleep(60)
if end == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
exit_record.at(int(step))
exit_record.end(int(end), "as planned")
os._exit(int(end))
"""
# A cloud that is the folder $CLOUD: `hosts` has the home of each worker, `states` what `describe`
# says next, `log` the words of each call. Its own code says nothing of the run's.
GCLOUD = r"""
printf '%s\0' "$@" '' >>"$CLOUD/log"
verb="$4" node="$5" codes=0
case "$verb" in
create)
  nodes=("$node")
  for word in "$@"; do
    [[ "$word" != --node-count=* ]] || nodes=("$node"-{0..1})
  done
  for node in "${nodes[@]}"; do mkdir -p "$CLOUD/hosts/$node/"{0..1}; done
  printf '%s\n' $STATES >"$CLOUD/states"
  ;;
describe)
  head -n 1 "$CLOUD/states" || exit 1
  [[ "$(wc -l <"$CLOUD/states")" == 1 ]] || sed -i 1d "$CLOUD/states"
  ;;
delete) rm -rf "$CLOUD/hosts" && rm "$CLOUD/states" ;;
scp)
  for word in "${@:5}"; do
    [[ "$word" == *:* ]] && node="${word%%:*}" && break
    files+=("$word")
  done
  for home in "$CLOUD/hosts/$node"/*; do cp "${files[@]}" "$home/clipjax-pod/" || exit 1; done
  ;;
ssh)
  first="${node##*-}" homes=("$CLOUD/hosts/$node"/*)
  [[ "$first" == [01] ]] || first=0
  [[ "$*" == *--worker=all* ]] || homes=("$CLOUD/hosts/$node/0")
  for home in "${homes[@]}"; do
    cd "$home" || exit 255
    HOME="$home" CLIPJAX_PROCESS_ID=$((2 * first + ${home##*/})) bash -c "${@: -1}" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || codes=255; done
  exit "$codes"
  ;;
esac
"""
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
  "-m pip install "*--requirement*) echo "pip" $(grep -v '#' "${@: -1}") ;;
  "-m pip install "*) echo "pip ${@: -1}" $(cat ${PIP_CONSTRAINT:-/dev/null}) ;;
  "-m pip freeze "*) echo "jax==0.10.2" && echo "libtpu==0.0.42" ;;
  "-m pip "*) ;;
  "-m pytest "*) echo "$*" ;;
  *) exec "$REAL" "$@" ;;
esac
"""


def programs(folder: Path, bodies: dict[str, str]) -> Path:
    """Makes programs of bodies for bash; returns their folder."""
    folder.mkdir(exist_ok=True)
    for name, body in bodies.items():
        shebang = "" if body.startswith("#!") else "#!/usr/bin/env bash\n"
        (folder / name).write_text(f"{shebang}{body}\n")
        (folder / name).chmod(0o755)
    return folder


class Plan:
    """Runs a launcher with a run that goes as planned."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "run"
        self.workdir.mkdir()
        (folder / "run.py").write_text(RUN)
        home = folder / "hosts" / "pod" / "0"  # a pod of one worker
        (home / "clipjax-pod").mkdir(parents=True)
        (home / "clipjax-pod" / "code").symlink_to(ROOT)
        (folder / "states").write_text("READY\n")
        bodies = {
            "clipjax": f'exec {sys.executable} -S {folder / "run.py"} "$@"',
            "python": f'exec {sys.executable} "$@"',
            "gcloud": GCLOUD,
            "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
            "scontrol": f'echo "$*" >>{folder / "requeued"}',
        }
        (folder / "bin").mkdir()
        (folder / "bin" / "activate").write_text("")
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs(folder / 'bin', bodies)}:{os.environ['PATH']}",
            "CLIPJAX_RESTARTS": "2",
            "VENV": str(folder),
            "SLURM_JOB_ID": "7",
            "CLOUD": str(folder),
            "STATES": "READY",
            "NAME": "pod",
            "ZONE": "z",
            "SKIP_SETUP": "1",
            "POLL_S": "0.1",
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
