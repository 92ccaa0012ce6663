"""Where the time of a run's steps goes, by `--profile_steps 10:15` of `clipjax train`.

steps.py traces the steps, kernel_times.py sums a trace by the names of the kernels.
"""

from clipjax.profiling.steps import StepProfile, parse_steps
