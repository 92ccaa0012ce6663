#!/usr/bin/env bash
# A TPU VM or a whole pod slice, through gcloud: copies this checkout to all workers, installs it
# there, and starts the same command on each. Starts it again after a preemption (exit code 80)
# or a hang (82).
#   NAME=my-pod ZONE=us-central2-b bash launch/tpu_pod.sh \
#     --config 'configs/clip_vit_b16.py:source=tar:/mnt/bucket/{00000..41455}.tar' --workdir /mnt/bucket/b16
# The workdir has to be one that all workers share: a bucket mounted with gcsfuse, or a file store.
#   PROJECT=...     another project than gcloud's own default
#   RETRIES=20      how often a preempted run is started again
#   SKIP_SETUP=1    the checkout and its environment are on the workers already
set -euo pipefail
: "${NAME:?set NAME to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GCLOUD=(gcloud compute tpus tpu-vm)
WHERE=("$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
PREEMPTED=80
HUNG=82

on_all() { "${GCLOUD[@]}" ssh "${WHERE[@]}" --worker=all --command "$1"; }

if [[ -z "${SKIP_SETUP:-}" ]]; then
  ARCHIVE="$(mktemp --suffix=.tar.gz)"
  trap 'rm -f "$ARCHIVE"' EXIT
  # What is committed, and nothing else: no data, no secrets, no run of this machine.
  git -C "$ROOT" archive --format=tar.gz --output "$ARCHIVE" HEAD
  "${GCLOUD[@]}" scp "$ARCHIVE" "$NAME:clipjax.tar.gz" "${WHERE[@]:1}" --worker=all
  on_all 'mkdir -p clipjax && tar -xzf clipjax.tar.gz -C clipjax && cd clipjax &&
    EXTRA=tpu bash launch/environment.sh'
fi

# %q quotes every argument for the shell on the other side.
COMMAND="cd clipjax && source .venv/bin/activate && clipjax train --distributed=on$(printf ' %q' "$@")"
for ((try = 0; try <= ${RETRIES:-20}; try++)); do
  on_all "$COMMAND" && exit 0 || CODE=$?
  [[ "$CODE" -eq "$PREEMPTED" || "$CODE" -eq "$HUNG" ]] || exit "$CODE"
  echo "stopped with $CODE; starting again ($((try + 1)))" >&2
done
exit "$CODE"
