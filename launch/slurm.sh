#!/usr/bin/env bash
#SBATCH --job-name=clipjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --exclusive
#SBATCH --signal=TERM@60
#SBATCH --requeue
# One task a GPU, or with --ntasks-per-node=1 one task a node, which drives all of its GPUs. Slurm's
# own variables say who is who: neither GPUs nor CPUs are bound, each task takes its part of the
# GPUs, and the readers of all have the CPUs. SIGTERM comes to the tasks a minute before the time
# limit: the run saves its step and exits with 80. After that, a hang or a lost process the job is
# put back into the queue (docs/launching.md); a job that is cancelled is not.
#   sbatch --nodes=4 --export=ALL,VENV=$PWD/.venv launch/slurm.sh --config configs/x.py --workdir DIR
#   bash launch/slurm.sh --dry_run --config ...     prints the commands of the job and runs none
set -uo pipefail
STEP=(srun --kill-on-bad-exit=0 --wait=150 --cpu-bind=none clipjax train)
JUDGE=(python -m clipjax.processes.launching judge)
if [[ "${1:-}" == --dry_run ]]; then
  shift
  printf '%q ' "${STEP[@]}" "$@" && echo
  printf '%q ' "${JUDGE[@]}" --code CODE -- "$@" && echo
  exit
fi
source "${VENV:-.venv}/bin/activate"
export CLIPJAX_LAUNCH="slurm-${SLURM_JOB_ID:-}/${SLURM_RESTART_COUNT:-0}"
SIGNALLED=
# All tasks end within a minute of one another; of one that is stuck, nobody else would know.
"${STEP[@]}" "$@" &
PID=$!
trap 'SIGNALLED=--signalled; kill -TERM "$PID" 2>/dev/null || true' TERM INT
while :; do
  wait "$PID" && CODE=0 || CODE=$?
  kill -0 "$PID" 2>/dev/null || break
done
[[ "$CODE" -ne 0 ]] || exit 0
# srun's code is the highest of all tasks'; the lead has written that of the run into exit.json.
if SAID="$("${JUDGE[@]}" --code "$CODE" $SIGNALLED -- "$@")" && [[ -n "${SLURM_JOB_ID:-}" ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "${SAID:-$CODE}"
