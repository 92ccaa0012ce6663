"""One of several writers of a workdir: `python -m tests.faults.two_writers WORKDIR NAME [--flag]`.

It begins when `WORKDIR.go` is there. `--take_over` takes the workdir from whoever has it, and
`--unowned` asks nobody, as before there was an owner file.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from tests.checkpoint import killed_run

STEP_S = 0.5  # the second one starts, by a compilation, within some steps


def main(workdir: str, name: str, *flags: str) -> int:
    from clipjax import checkpoint

    if "--unowned" in flags:
        checkpoint.owned = lambda *_, **__: contextlib.nullcontext(lambda: None)
    killed_run.make_run()
    Path(f"{workdir}.{name}").touch()
    while not Path(f"{workdir}.go").exists():
        time.sleep(0.001)

    def at_step(step: int) -> None:
        if step == 8 and "--die" in flags:
            os._exit(9)
        if step == 8:
            Path(f"{workdir}.{name}.at_8").touch()
            while "--wait" in flags and str(os.getpid()) in Path(workdir, "owner.json").read_text():
                time.sleep(0.01)  # until the other one has taken over
        time.sleep(STEP_S)

    try:
        return killed_run.train(workdir, at_step=at_step, take_over="--take_over" in flags)[0]
    except (checkpoint.WorkdirTakenError, checkpoint.CheckpointSaveError) as error:
        sys.stdout.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # of a save that failed, Orbax's threads wait for minutes
