#!/usr/bin/env bash
#SBATCH --job-name=clipjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --signal=TERM@60
#SBATCH --requeue
# One task a GPU; each sees all of its node's and JAX takes the one of its local rank, so the GPUs
# are not bound by Slurm. Slurm's own variables tell JAX who is who. SIGTERM comes a minute before the time
# limit: the run saves its step and exits with 80, and the job is put back into the queue.
#   sbatch --nodes=4 --export=ALL,VENV=$PWD/.venv launch/slurm.sh --config configs/x.py --workdir DIR
set -uo pipefail
PREEMPTED=80
source "${VENV:-.venv}/bin/activate"
srun --kill-on-bad-exit=0 clipjax train "$@" &
STEP=$!
trap 'kill -TERM "$STEP" 2>/dev/null || true' TERM
while :; do
  wait "$STEP" && CODE=0 || CODE=$?
  kill -0 "$STEP" 2>/dev/null || break
done
if [[ "$CODE" -eq "$PREEMPTED" && -n "${SLURM_JOB_ID:-}" ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$CODE"
