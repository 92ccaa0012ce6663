#!/usr/bin/env bash
# What launch/tpu_pod.sh has each worker do. The run goes on without the connection that began it.
#   start LAUNCH FLAGS...   starts `clipjax train`, as that start of that launcher
#   follow LINES            shows its output until it ends
#   settle LAUNCH           waits for its end; what is stuck would hold up the next start
#   judge LAUNCH [--signalled] -- FLAGS...     its exit code; ends with 0 to start again
#   stop [LAUNCH] | status | idle
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RUN="$(cd .. && pwd)/run" # launch, pid, code, log
export PATH="$PWD/../venv/bin:$PATH"
PID="$(cat "$RUN/pid" 2>/dev/null)" || PID=
LAUNCH="$(cat "$RUN/launch" 2>/dev/null)" || LAUNCH=
VERB="$1" && shift

# Whether what was started here still goes on; its number may be another process's by now.
goes_on() { [[ -n "$PID" ]] && grep -qzxF "CLIPJAX_LAUNCH=$LAUNCH" "/proc/$PID/environ" 2>/dev/null; }

is_idle() {
  goes_on || return 0
  echo "$(hostname): the run $LAUNCH still goes on: \`logs\` shows it, \`stop\` ends it" >&2
  return 1
}

# How a start ended; 137 where nobody is left to say so, as after a loss of the machine.
code_of() {
  local tenths
  for ((tenths = 0; tenths < 20; tenths++)); do
    [[ "$LAUNCH" != "$1" ]] || ! cat "$RUN/code" 2>/dev/null || return 0
    [[ "$LAUNCH" == "$1" ]] || break
    sleep 0.1
  done
  echo 137
}

case "$VERB" in
idle) is_idle ;;
start)
  is_idle
  LAUNCH="$1" && shift
  mkdir -p "$RUN" && rm -f "$RUN/pid" "$RUN/code" && echo "$LAUNCH" >"$RUN/launch"
  export CLIPJAX_LAUNCH="$LAUNCH"
  setsid bash -c 'clipjax train --distributed=on "$@" &
    echo "$!" >"$0/pid"
    wait "$!"
    echo "$?" >"$0/code"' "$RUN" "$@" >"$RUN/log" 2>&1 </dev/null &
  # It ends without a word of its process where its folder is lost, or its disk is full.
  until [[ -s "$RUN/pid" ]] || ! kill -0 "$!" 2>/dev/null; do sleep 0.1; done
  [[ -s "$RUN/pid" ]] || { echo "$(hostname): the run $LAUNCH did not start" >&2 && exit 1; }
  ;;
follow)
  [[ -n "$PID" ]] || { echo "$(hostname): nothing was started here" >&2 && exit 1; }
  tail --lines="$1" --sleep-interval=0.2 --pid="$PID" --follow "$RUN/log"
  ;;
settle)
  for ((second = 0; second < 150; second++)); do
    [[ "$LAUNCH" == "$1" ]] && goes_on || exit 0
    sleep 1
  done
  echo "$(hostname): process $PID did not end by itself: killed" >&2
  kill -KILL "$PID"
  ;;
judge)
  CODE="$(code_of "$1")"
  exec python -m clipjax.processes.launching judge --launch "$1" --code "$CODE" "${@:2}"
  ;;
stop)
  if [[ "${1:-$LAUNCH}" == "$LAUNCH" ]] && goes_on; then
    kill -TERM "$PID"
    echo "$(hostname): process $PID of the run is asked to save its step and end"
  fi
  ;;
status)
  if [[ -z "$LAUNCH" ]]; then
    echo "$(hostname): nothing was started here"
  elif goes_on; then
    echo "$(hostname): the run $LAUNCH goes on as process $PID"
  else
    echo "$(hostname): the run $LAUNCH ended with $(code_of "$LAUNCH")"
  fi
  tail --lines=3 "$RUN/log" 2>/dev/null || true
  ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
