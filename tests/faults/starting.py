"""Processes of the real command that start in a fraction of the time: forks of one that imported.

`python -m tests.faults.starting` imports clipjax and touches no device; for each line of its input
it forks, and the fork runs the command. Imports and the compiler are most of a tiny run's time.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HANGS_S = 600.0
# Fewer of XLA's passes: the same programs in every run of a row, compiled in a third of the time.
QUICK = {
    "JAX_PLATFORMS": "cpu",
    "OPENBLAS_NUM_THREADS": "1",  # its pool begins with the import, and a fork has one thread
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
}


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """The environment of a run that keeps what it compiles in `cache`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "CLIPJAX_"))}
    path = f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}"
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "CLIPJAX_CACHE": str(cache)}
    return {**kept, **QUICK, **cached, "PYTHONPATH": path, **changes}


class Started:
    """A running command; as a `subprocess.Popen` ends."""

    def __init__(self, starter: "Starter", pid: int, log: Path) -> None:
        self._starter, self.pid, self.log = starter, pid, log
        self.returncode: int | None = None

    def poll(self, timeout: float = 0) -> int | None:
        """Its exit code, minus the signal's number where one ended it; None while it runs."""
        if self.returncode is None:
            pipe = self._starter.process.stdout
            assert pipe is not None
            if select.select([pipe], [], [], timeout)[0]:
                line = pipe.readline()
                assert line, "the process that forks is gone"
                self.returncode = int(line)
        return self.returncode

    def wait(self, timeout: float = HANGS_S) -> int:
        """Waits for its end."""
        code = self.poll(timeout)
        if code is None:
            self.kill()
            self.poll(60)
            raise AssertionError(f"no end in {timeout} s: {self.tail()}")
        return code

    def kill(self) -> None:
        """SIGKILL, where it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def tail(self) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-2000:]


class Starter:
    """Forks the command; one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.starting"],
            cwd=ROOT,
            env=environment(Path("unset")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(self, *arguments: Any, log: Path, env: dict[str, str], prepare: str = "") -> Started:
        """Starts `clipjax ARGUMENTS`; `prepare`, `module:function`, is called before it."""
        request = {"argv": list(map(str, arguments)), "log": str(log), "env": env, "call": prepare}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return Started(self, int(self.process.stdout.readline()), log)


_starters: dict[int, Starter] = {}


def starter() -> Starter:
    """This process's own; it ends with this process, whose end closes its input."""
    if os.getpid() not in _starters:
        _starters[os.getpid()] = Starter()
    return _starters[os.getpid()]


def serve() -> None:
    """Forks for each line of the input; says the pid, then how it ended."""
    for name in ("cli.main", "cli.train", "evaluate", "experiment", "train"):
        importlib.import_module(f"clipjax.{name}")
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        threads = len(list(Path("/proc/self/task").iterdir()))
        assert threads == 1, f"{threads} threads: a fork has only one of them"
        if (pid := os.fork()) == 0:
            os.close(answers)
            _become(request)
        os.write(answers, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any]) -> None:
    """Runs the command of a request in this process."""
    import jax

    from clipjax.cli.main import run

    code: Any = 70
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(request["env"])
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        if request["call"]:
            module, _, name = request["call"].partition(":")
            getattr(importlib.import_module(module), name)()
        sys.argv = ["clipjax", *request["argv"]]
        run(sys.argv)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def wait_until(condition: Any, process: Any, timeout: float = HANGS_S) -> None:
    """Waits until a condition holds, or the process has ended."""
    end = time.monotonic() + timeout
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, f"waited for {timeout} s"
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
