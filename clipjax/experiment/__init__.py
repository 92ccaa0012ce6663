"""From a config to the objects of a run; beside it, plans and flags alone read config fields.

`build_program` (program.py) makes what a device executes: model, loss, optimizer, shardings, the
jitted step. It touches no data, so that `clipjax plan` compiles the very same step for a pod that
is not there. `build_experiment` (run.py) adds the data, the evaluations (evaluations.py) and the
parameters to start from (start.py).
"""

from clipjax.experiment.program import Program, build_program, check_config
from clipjax.experiment.run import Experiment, build_experiment, config_hash

__all__ = [
    "Experiment",
    "Program",
    "build_experiment",
    "build_program",
    "check_config",
    "config_hash",
]
