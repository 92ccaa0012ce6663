"""Exit codes of `clipjax train`: what a launcher or supervisor does next is read from them."""

# A supervisor starts a run again on PREEMPTED, HUNG and PEER_LOST, and shows FAILED and NUMERIC to
# a person.
OK = 0
FAILED = 1
PREEMPTED = 80  # SIGTERM or SIGUSR1 came; the current step is saved
NUMERIC = 81  # too many non-finite steps, or a state that is not finite
HUNG = 82  # the watchdog saw no finished step in time
PEER_LOST = 83  # another process of the run failed, was lost or stopped
