#!/usr/bin/env bash
#SBATCH --job-name=clipjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --signal=TERM@60
#SBATCH --requeue
# One task a GPU; each sees all of its node's and JAX takes the one of its local rank, so the GPUs
# are not bound by Slurm. Slurm's own variables tell JAX who is who. SIGTERM comes to the tasks a
# minute before the time limit: the run saves its step and exits with 80. After that, a hang or a
# lost process the job is put back into the queue (docs/launching.md); a job that is cancelled is not.
#   sbatch --nodes=4 --export=ALL,VENV=$PWD/.venv launch/slurm.sh --config configs/x.py --workdir DIR
set -uo pipefail
source "${VENV:-.venv}/bin/activate"
export CLIPJAX_LAUNCH="slurm-${SLURM_JOB_ID:-}/${SLURM_RESTART_COUNT:-0}"
SIGNALLED=
# All tasks end within a minute of one another; of one that is stuck, nobody else would know.
srun --kill-on-bad-exit=0 --wait=150 clipjax train "$@" &
STEP=$!
trap 'SIGNALLED=--signalled; kill -TERM "$STEP" 2>/dev/null || true' TERM INT
while :; do
  wait "$STEP" && CODE=0 || CODE=$?
  kill -0 "$STEP" 2>/dev/null || break
done
[[ "$CODE" -ne 0 ]] || exit 0
# srun's code is the highest of all tasks'; the lead has written that of the run into exit.json.
if SAID="$(python -m clipjax.processes.launching judge --code "$CODE" $SIGNALLED -- "$@")" && [[ -n "${SLURM_JOB_ID:-}" ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "${SAID:-$CODE}"
