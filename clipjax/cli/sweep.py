"""`clipjax sweep --config configs/x.py[:args] --workdir DIR --grid FIELD=VALUE,VALUE ...`.

Trains the config once for each combination of the values, one run after another, each in a folder
of DIR that is called by its values. Started again, it goes on: a finished run is not run again.
--print prints the commands instead; those of a launcher with --launcher 'bash launch/local.sh 2'.
"""

import json
import shlex
import sys
from typing import TYPE_CHECKING

from absl import flags

from clipjax.cli import config_flag, opening
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show, show_page
from clipjax.processes import exit_codes

if TYPE_CHECKING:  # these imports take a while: not for --help
    from pathlib import Path

    from clipjax.sweep import Point, Run

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that the runs get theirs in.")
_GRID = flags.DEFINE_multi_string(
    "grid", [], "FIELD=VALUE,VALUE of the config; given again, all combinations are run."
)
_METRIC = flags.DEFINE_list(
    "metric", [], "Metrics of the table; the first ranks the runs, a `-` in front: from below."
)
_PRINT = flags.DEFINE_bool("print", False, "Print the commands of the runs, and run none.")
_LAUNCHER = flags.DEFINE_string(
    "launcher", None, "What starts a run in place of `clipjax train`: 'bash launch/local.sh 2'."
)
_STOP_AT_FAILURE = flags.DEFINE_bool(
    "stop_at_failure", False, "Begin no further run behind one that failed."
)
flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> int:
    """Runs the sweep; 0 if all runs finished, 1 if one failed, 80 if it is to be started again."""
    no_positional(argv)
    how = ": --config configs/x.py --workdir DIR --grid optimizer.learning_rate=1e-3,2e-3"
    given(_CONFIG.value, "--config", how)
    where = given(_WORKDIR.value, "--workdir", how)
    from clipjax import sweep
    from clipjax.data.storage.files import local_path
    from clipjax.experiment import MOUNT
    from clipjax.files import write_file

    folder = local_path(where, way=f"{MOUNT} as --workdir")
    found = sweep.points([sweep.parse_axis(text) for text in _GRID.value])
    runs = [_run(point, folder) for point in found]  # all are looked at before the first begins
    if _PRINT.value:
        start = shlex.split(_LAUNCHER.value or "clipjax train")
        own = len(_start())
        for run in runs:
            show(shlex.join([*start, *run.command[own:]]))
        return exit_codes.OK
    outcomes = sweep.run_all(
        runs,
        say=lambda text: show(f"sweep: {text}"),
        stop_at_failure=_STOP_AT_FAILURE.value,
        supervised=_LAUNCHER.value is None,
    )
    metrics = sweep.metrics_shown(outcomes, _METRIC.value)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "sweep.json", json.dumps(sweep.to_json(outcomes, metrics), indent=1) + "\n")
    title = f"Sweep of {folder.absolute().name}"
    write_file(folder / "sweep.html", sweep.sweep_page(title, outcomes, metrics))
    show_page(sweep.to_text(outcomes, metrics))
    show(f"page: {folder / 'sweep.html'}")
    states = {outcome.state for outcome in outcomes}
    if states == {sweep.FINISHED}:
        return exit_codes.OK
    return exit_codes.FAILED if sweep.FAILED in states else exit_codes.PREEMPTED


def _start() -> list[str]:
    """What a run begins with; `clipjax` may not be on the PATH."""
    if _LAUNCHER.value:
        return shlex.split(_LAUNCHER.value)
    return [sys.executable, "-m", "clipjax", "train"]


def _run(point: "Point", folder: "Path") -> "Run":
    """A run, its config checked as `clipjax train` would."""
    from clipjax.experiment import resolve
    from clipjax.plan.model_flops import forward_size
    from clipjax.sweep import Run

    words = [*config_flag.words_of(sys.argv[2:]), *point.overrides]
    workdir = folder / point.name
    try:
        config = config_flag.parse(words)
        opening.put_into(config)
        resolved = resolve(config, workdir=workdir)
        samples, forward_flops = forward_size(resolved.stages)
    except (ValueError, KeyError, AttributeError, TypeError, flags.Error) as error:
        raise ValueError(f"--grid, at {point.name}: {error}") from error
    passed = [f"--plugin={name}" for name in opening.plugins()]
    passed += [f"--tokenizer={opening.tokenizer()}"] if opening.tokenizer() else []
    return Run(
        point=point,
        workdir=workdir,
        command=(*_start(), *words, *passed, "--workdir", str(workdir)),
        config=resolved.config,
        is_evaluated=bool(resolved.settings.evals),
        samples=samples,
        forward_flops=forward_flops,
    )
