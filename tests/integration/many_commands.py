"""Runs many commands, each in a fork of one process that has imported everything once.

Standard input: a JSON list of argument lists. Standard output: a JSON list of [exit code, output].
A run that would train prints what its checkpoints would say of it, one line of JSON, instead.
"""

import json
import os
import sys
import tempfile
import warnings


def print_metadata(experiment, **_) -> None:
    told = {**experiment.metadata, "hang_timeout_s": experiment.settings.hang_timeout_s}
    sys.stdout.write(json.dumps(told) + "\n")


def initialize(mode: str, limits: object) -> None:
    """What comes before a cluster is joined must not touch a device."""
    assert not xla_bridge.backends_are_initialized()


def run_forked(argv: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as file:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.argv = argv
            try:
                main.run(argv)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of jax, about forks; no backend is started here
    from jax._src import xla_bridge

    import clipjax.evaluate
    import clipjax.experiment
    import clipjax.train
    from clipjax.cli import main

    clipjax.train.train = print_metadata
    clipjax.processes.distributed.initialize = initialize
    sys.stdout.write(json.dumps([run_forked(argv) for argv in json.load(sys.stdin)]))
