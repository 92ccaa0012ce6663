#!/usr/bin/env bash
# N processes on this machine, joined as the hosts of a pod would be (CPU collectives by gloo): the
# place to find out whether a run survives more than one process. VERB is `train` unless given.
#   bash launch/local.sh N [VERB] [--flag=value ...]
set -euo pipefail
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/local.sh N [VERB] [--flag=value ...], VERB is train unless given" >&2
  exit 2
fi
NUM="$1"
shift
VERB=train
if [[ "${1:-}" =~ ^[a-z]+$ ]]; then
  VERB="$1"
  shift
fi
CLIPJAX="${CLIPJAX_COMMAND:-clipjax}"
PORT="${CLIPJAX_PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"
export CLIPJAX_COORDINATOR="127.0.0.1:$PORT" CLIPJAX_NUM_PROCESSES="$NUM"
PIDS=()
# Only the processes that this script has started are ever signalled.
trap 'kill -TERM "${PIDS[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < NUM; i++)); do
  CLIPJAX_PROCESS_ID="$i" $CLIPJAX "$VERB" "$@" &
  PIDS+=("$!")
done
CODE=0
for pid in "${PIDS[@]}"; do
  # `wait` returns early when a trap runs; then the process is waited for again.
  while :; do
    wait "$pid" && status=0 || status=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  # The first process that fails decides; a preempted run (80) is told from a failed one.
  if [[ "$status" -ne 0 && "$CODE" -eq 0 ]]; then CODE="$status"; fi
done
exit "$CODE"
