"""From a config to the objects of a run.

`resolve` (resolving.py) is the only reader of a config: it decides all that the config says, once,
with no device and no data. `build_program` (program.py) makes of it what a device executes: loss,
optimizer, shardings, the jitted step of each stage (stages.py). It touches no data, so that
`clipjax plan` compiles the very same step for a pod that is not there. `build_experiment` (run.py)
adds the data, the evaluations and the parameters to start from (start.py).
"""

from clipjax.experiment.fitting import fitting_program
from clipjax.experiment.program import Program, build_program
from clipjax.experiment.resolving import MOUNT, Resolved, resolve
from clipjax.experiment.run import Experiment, build_experiment
from clipjax.experiment.stages import Stage
