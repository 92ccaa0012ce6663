#!/usr/bin/env bash
# A TPU VM or a whole pod slice, through gcloud: copies this checkout to all workers, installs it
# there, and starts the same command on each. Starts it again after a preemption, a hang or a lost
# process (docs/launching.md), unless this script is told to stop.
#   NAME=my-pod ZONE=us-central2-b bash launch/tpu_pod.sh \
#     --config 'configs/clip_vit_b16.py:source=tar:/mnt/bucket/{00000..41455}.tar' --workdir /mnt/bucket/b16
# The workdir has to be one that all workers share: a bucket mounted with gcsfuse, or a file store.
#   PROJECT=...     another project than gcloud's own default
#   CLIPJAX_RESTARTS=5   how often in a row a run is started again without a newer checkpoint
#   SKIP_SETUP=1    the checkout and its environment are on the workers already
set -euo pipefail
: "${NAME:?set NAME to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GCLOUD=(gcloud compute tpus tpu-vm)
WHERE=("$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})

on() { "${GCLOUD[@]}" ssh "${WHERE[@]}" --worker="$1" --command "$2"; }

if [[ -z "${SKIP_SETUP:-}" ]]; then
  ARCHIVE="$(mktemp --suffix=.tar.gz)"
  trap 'rm -f "$ARCHIVE"' EXIT
  # What is committed, and nothing else: no data, no secrets, no run of this machine.
  git -C "$ROOT" archive --format=tar.gz --output "$ARCHIVE" HEAD
  "${GCLOUD[@]}" scp "$ARCHIVE" "$NAME:clipjax.tar.gz" "${WHERE[@]:1}" --worker=all
  on all 'mkdir -p clipjax && tar -xzf clipjax.tar.gz -C clipjax && cd clipjax &&
    EXTRA=tpu bash launch/environment.sh'
fi

# %q quotes every argument for the shell on the other side.
INSIDE="cd clipjax && source .venv/bin/activate && CLIPJAX_RESTARTS=$(printf %q "${CLIPJAX_RESTARTS:-}")"
FLAGS="$(printf ' %q' "$@")"
SIGNALLED=
trap 'SIGNALLED=--signalled' INT TERM HUP
for ((try = 0; ; try++)); do
  LAUNCH="${HOSTNAME:-pod}-$$/$try"
  on all "$INSIDE CLIPJAX_LAUNCH=$LAUNCH clipjax train --distributed=on$FLAGS" && exit 0 || CODE=$?
  # gcloud's code is not that of the run; the lead, worker 0, has written exit.json.
  SAID="$(on 0 "$INSIDE python -m clipjax.processes.launching judge --launch $LAUNCH --code $CODE $SIGNALLED --$FLAGS")" ||
    exit "${SAID:-$CODE}"
done
