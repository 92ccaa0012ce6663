#!/usr/bin/env bash
# A TPU VM, a pod slice, or several slices, through gcloud: made, installed, trained on, deleted.
# docs/launching.md walks through it.
#   export NAME=my-pod ZONE=... TYPE=v4-32 VERSION=tpu-ubuntu2204-base
#   bash launch/tpu_pod.sh create                makes the machines and waits until they stand
#   bash launch/tpu_pod.sh run --config configs/x.py --workdir /mnt/bucket/x
#                                                installs this commit on all workers, starts
#                                                `clipjax train` on each, shows worker 0's output, and
#                                                starts it again as docs/launching.md says
#   bash launch/tpu_pod.sh install | logs | status | stop | delete | lock >tpu.lock
#   bash launch/tpu_pod.sh each clipjax doctor --distributed=on         a command on all workers
# `--dry_run` in front of the verb prints the commands and runs none. From the environment:
#   PROJECT=...          another project than gcloud's own default
#   QUEUED=1 SPOT=1      a queued resource; machines that are cheaper and may be taken away
#   SLICES=2             so many slices, of one queued resource
#   SHA=HEAD             the commit that is installed
#   EXTRA=tpu            of setup.py: tpu,cloud reads data from buckets without a mount
#   LOCK=tpu.lock        the versions that are installed, from launch/lock.sh
#   SETUP='...'          a command for each worker, before each installation: to mount the bucket
#   CLIPJAX_PYTHON=...   the Python of the workers, 3.11 or newer
#   CLIPJAX_RESTARTS=5   how often in a row a run is started again without a newer checkpoint
#   SKIP_SETUP=1         `run` does not install
# The workdir has to be one that all workers share: a bucket mounted with gcsfuse, or a file store.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY=
[[ "${1:-}" != --dry_run ]] || { DRY=1 && shift; }
VERB=run # as when there was no other
[[ "${1:-}" == --* ]] || { VERB="${1:-help}" && shift $(($# > 0)); }
[[ " create install run logs status stop delete lock each " == *" $VERB "* ]] || {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" >&2
  exit 2
}
: "${NAME:?set NAME to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
TPUS=(gcloud compute tpus)
WHERE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
SLICES="${SLICES:-1}"
NODES=("$NAME")
if [[ "$SLICES" != 1 ]]; then
  QUEUED=1 NODES=()
  for ((slice = 0; slice < SLICES; slice++)); do NODES+=("$NAME-$slice"); done
fi
HERE=clipjax-pod # in the home of each worker: code, venv, lock, and the run's output
WORKER="bash $HERE/code/launch/tpu_worker.sh"
POLL_S="${POLL_S:-20}"
COMMIT='' FOLDER='' PID='' SIGNALLED=''
trap '[[ -z "$PID" ]] || kill "$PID" 2>/dev/null; [[ -z "$FOLDER" ]] || rm -rf "$FOLDER"; true' EXIT

say() { echo "clipjax launcher: $*" >&2; }

# The words as a shell reads them: on the other side, and in a dry run.
quoted() {
  local word apostrophe="'" escaped="'\\''" between=
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//$apostrophe/$escaped}'"
    printf '%s%s' "$between" "$word"
    between=' '
  done
}

call() {
  if [[ -n "$DRY" ]]; then quoted "$@" && echo; else "$@"; fi
}

# Runs a command in a shell of the first worker, which is process 0 of the run; or of each worker.
FIRST=("${TPUS[@]}" tpu-vm ssh "${NODES[0]}" "${WHERE[@]}" --worker=0 --command)
on_first() { call "${FIRST[@]}" "$1"; }
on_all() {
  local node pids=() pid code=0
  for node in "${NODES[@]}"; do
    local ssh=("${TPUS[@]}" tpu-vm ssh "$node" "${WHERE[@]}" --worker=all --command "$1")
    if [[ -n "$DRY" || "$SLICES" == 1 ]]; then
      call "${ssh[@]}" || code=$?
    else
      "${ssh[@]}" &
      pids+=("$!")
    fi
  done
  for pid in "${pids[@]+"${pids[@]}"}"; do wait "$pid" || code=$?; done
  return "$code"
}

describe() {
  if [[ -n "${QUEUED:-}" ]]; then
    call "${TPUS[@]}" queued-resources describe "$NAME" "${WHERE[@]}" "$@"
  else
    call "${TPUS[@]}" tpu-vm describe "$NAME" "${WHERE[@]}" "$@"
  fi
}
state() { describe "--format=value(${QUEUED:+state.}state)"; }

create() {
  : "${TYPE:?set TYPE to the accelerator type}" "${VERSION:?set VERSION to the version of the image}"
  local what=("--accelerator-type=$TYPE")
  if [[ -z "${QUEUED:-}" ]]; then
    call "${TPUS[@]}" tpu-vm create "$NAME" "${WHERE[@]}" "${what[@]}" "--version=$VERSION" \
      ${SPOT:+--spot}
  else
    what+=("--runtime-version=$VERSION")
    if [[ "$SLICES" == 1 ]]; then
      what+=("--node-id=$NAME")
    else
      what+=("--node-count=$SLICES" "--node-prefix=$NAME")
    fi
    call "${TPUS[@]}" queued-resources create "$NAME" "${WHERE[@]}" "${what[@]}" ${SPOT:+--spot}
  fi
  until_ready
}

until_ready() {
  local now before='' failed=0
  [[ -z "$DRY" ]] || { state && return; }
  while :; do
    now="$(state)" && failed=0 || ((++failed < 10)) || return 1
    [[ "$now" == "$before" ]] || say "$NAME: ${now:-its state is not known}"
    case "$now" in
    READY | ACTIVE) break ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
      say "it does not come up: \`status\` says more, \`delete\` takes it away"
      return 1
      ;;
    esac
    before="$now"
    [[ -z "$SIGNALLED" ]] || return 1
    sleep "$POLL_S"
  done
  say "$NAME stands, and costs until it is deleted: bash launch/tpu_pod.sh delete"
}

remove() {
  if [[ -n "${QUEUED:-}" ]]; then
    call "${TPUS[@]}" queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
  else
    call "${TPUS[@]}" tpu-vm delete "$NAME" "${WHERE[@]}" --quiet
  fi
}

# The commit that is installed, each time: HEAD may be another by the next morning.
find_commit() {
  COMMIT="$(git -C "$ROOT" rev-parse --verify --quiet "${SHA:-HEAD}^{commit}")" && return
  say "SHA=${SHA:-HEAD}: there is no such commit in $ROOT"
  exit 2
}

install() {
  local node folder="${TMPDIR:-/tmp}/clipjax-launch" files
  [[ -n "$COMMIT" ]] || find_commit
  [[ -n "$DRY" ]] || { FOLDER="$(mktemp -d)" && folder="$FOLDER"; }
  # What is committed, and nothing else: no data, no secrets, no run of this machine.
  git -C "$ROOT" diff --quiet "$COMMIT" -- || say "what differs from ${COMMIT:0:12} is not installed"
  call git -C "$ROOT" archive --format=tar.gz "--output=$folder/code.tar.gz" "$COMMIT"
  files=("$folder/code.tar.gz")
  if [[ -n "${LOCK:-}" ]]; then
    call cp "$LOCK" "$folder/lock"
    files+=("$folder/lock")
  fi
  on_all "mkdir -p $HERE && cd $HERE && { [ ! -e code ] || bash code/launch/tpu_worker.sh idle; } \
&& rm -rf code && mkdir code"
  for node in "${NODES[@]}"; do
    call "${TPUS[@]}" tpu-vm scp "${files[@]}" "$node:$HERE/" "${WHERE[@]}" --worker=all
  done
  [[ -z "${SETUP:-}" ]] || on_all "$SETUP"
  on_all "cd $HERE/code && tar -xzf ../code.tar.gz && echo $COMMIT >COMMIT && $(environment) \
bash launch/environment.sh"
  [[ -n "$DRY" ]] || { rm -rf "$FOLDER" && FOLDER=''; }
}
environment() {
  quoted EXTRA="${EXTRA:-tpu}" CLIPJAX_VENV=../venv ${LOCK:+CLIPJAX_LOCK=../lock} \
    ${CLIPJAX_PYTHON:+"CLIPJAX_PYTHON=$CLIPJAX_PYTHON"}
}

# Whether the machines were taken away, asked $1 times: the answer may come later than the loss.
taken() {
  local left
  for ((left = $1; left > 0; left--)); do
    case "$(state)" in PREEMPTED | TERMINATED | SUSPENDING | SUSPENDED) return ;; esac
    ((left == 1)) || sleep "$POLL_S"
  done
  return 1
}

# Shows worker 0's output until the run has ended there, or its machines were taken away. The run
# does not end with the connection.
follow() {
  local from=+1 failed=0 since code
  [[ -z "$DRY" ]] || { on_first "$WORKER follow $from" && return; }
  while :; do
    since="$SECONDS"
    "${FIRST[@]}" "$WORKER follow $from" &
    PID=$!
    while :; do # a signal ends `wait`, and not what it waits for
      wait "$PID" && code=0 || code=$?
      kill -0 "$PID" 2>/dev/null || break
    done
    PID=''
    [[ "$code" != 0 ]] && ! taken 1 || return 0
    ((SECONDS - since < 60)) || failed=0
    ((++failed < 20)) || {
      say "no way to worker 0 any more; the run may still go on there: \`logs\`, \`stop\`"
      exit 1
    }
    from=20
    sleep "$POLL_S"
  done
}

# What Ctrl-C and SIGTERM do. A terminal that is closed ends this script alone.
stop_run() {
  trap - INT TERM # a second one ends this script, and the run stops all the same
  SIGNALLED=--signalled
  on_all "$WORKER stop" || true
}

anew() {
  say "$NAME was taken away"
  [[ "${CLIPJAX_RESTARTS:-}" != 0 && -z "$SIGNALLED" ]] || exit 83
  [[ -n "${TYPE:-}" && -n "${VERSION:-}" ]] || {
    say "with TYPE and VERSION it would be made anew, and the run go on"
    exit 83
  }
  until [[ "$(state)" != SUSPENDING ]]; do sleep "$POLL_S"; done
  say "it is made anew"
  remove && create && install
}

is_shared() {
  local flag before=''
  for flag in "$@"; do
    [[ "$flag" != --workdir=/* && ! ("$before" == --workdir && "$flag" == /*) ]] || return 0
    before="$flag"
  done
  say "give --workdir=/DIR, a folder that all workers share, such as one of a mounted bucket"
  exit 2
}

run() {
  is_shared "$@"
  local flags id try launch judge said again
  id="$NAME-$(date -u +%Y%m%dT%H%M%SZ)-$$"
  flags="$(quoted "$@")"
  find_commit
  [[ -n "${SKIP_SETUP:-}" ]] || install
  trap stop_run INT TERM
  for ((try = 0, again = 1; again; try++)); do
    launch="$id/$try"
    on_all "$WORKER start $launch $flags" || taken $((try ? 10 : 1)) || {
      on_all "$WORKER stop $launch" || true
      exit 1
    }
    follow
    on_all "$WORKER settle $launch" || true
    # gcloud's code is not that of the run; the lead, worker 0, has written exit.json.
    judge="${CLIPJAX_RESTARTS:+CLIPJAX_RESTARTS=$(quoted "$CLIPJAX_RESTARTS") }$WORKER judge $launch"
    said="$(on_first "$judge${SIGNALLED:+ $SIGNALLED} -- $flags")" || again=0
    [[ -z "$DRY" ]] || { echo "$said" && return; }
    if [[ ! "$said" =~ [0-9]$ ]] && taken 10; then
      anew
      said="$(on_first "$judge -- $flags")" && again=1 || again=0
    fi
    [[ "$said" =~ [0-9]$ ]] || again=0 # nobody has judged
  done
  [[ "$said" =~ ([0-9]+)$ ]] || { say "worker 0 does not say how the run ended" && exit 1; }
  say "$NAME still stands, and costs until it is deleted: bash launch/tpu_pod.sh delete"
  exit "${BASH_REMATCH[1]}"
}

delete() {
  local answer
  describe
  [[ -z "$DRY" ]] || { remove && return; }
  say "this is $NAME in $ZONE. It costs as long as it stands, at work or not. What is on its disks is"
  say "lost with it; buckets stay. Type $NAME to delete it:"
  read -r answer && [[ "$answer" == "$NAME" ]] || { say "not deleted" && exit 1; }
  remove
}

case "$VERB" in
create | install | delete | run) "$VERB" "$@" ;;
logs) on_first "$WORKER follow 100" ;;
status) describe && on_all "$WORKER status" ;;
stop)
  on_all "$WORKER stop"
  say "$NAME still stands, and costs until it is deleted: bash launch/tpu_pod.sh delete"
  ;;
lock) on_first "cd $HERE/code && $(environment) bash launch/lock.sh ${EXTRA:-tpu}" ;;
each) on_all "cd $HERE/code && PATH=\"\$PWD/../venv/bin:\$PATH\" && $(quoted "$@")" ;;
esac
