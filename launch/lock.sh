#!/usr/bin/env bash
# Prints the versions of an environment of clipjax[EXTRA], one a line as `pip freeze` has them: of
# CLIPJAX_VENV, or of one that is made for it with the newest that setup.py allows. A lock is for the
# Python and the system that it was made on; launch/environment.sh installs it with CLIPJAX_LOCK.
#   bash launch/lock.sh tpu >tpu.lock
set -euo pipefail
EXTRA="${1:?name an extra of setup.py, such as tpu}"
if [[ -z "${CLIPJAX_VENV:-}" ]]; then
  export CLIPJAX_VENV
  CLIPJAX_VENV="$(mktemp -d)"
  trap 'rm -rf "$CLIPJAX_VENV"' EXIT
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" >&2
lock_of "$VENV/bin/python"
python -m pip freeze --exclude-editable
