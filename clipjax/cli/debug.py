"""`clipjax debug --config configs/x.py[:args] --workdir DIR --step N [--config.k=v ...]`.

Replays step N of a run, one of those in skipped.jsonl, from the newest checkpoint before it, and
says where the first number arises that is not finite. The config is the run's; nothing is written.
"""

from absl import flags

from clipjax.cli import config_flag, opening
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_integer("step", None, "The step, from 1, as in skipped.jsonl.", 1)
flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> int:
    """Replays the step; returns the exit code."""
    no_positional(argv)
    how = ": --config configs/x.py --workdir DIR --step N"
    config, workdir = given(_CONFIG.value, "--config", how), given(_WORKDIR.value, "--workdir", how)
    step = given(_STEP.value, "--step", how)
    opening.put_into(config)
    from clipjax.debugging import replay  # these imports take a while: not for --help
    from clipjax.experiment import build_experiment, resolve

    experiment = build_experiment(resolve(config, workdir=workdir), workdir)
    try:
        for line in replay(experiment, step):
            show(line)
    finally:
        experiment.loader.close()
    return 0
