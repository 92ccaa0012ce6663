# Sourced by the other launch scripts: makes or reuses the virtual environment `.venv` of this
# checkout (CLIPJAX_VENV names another) and installs the package with the extra that the caller
# names in $EXTRA; with CLIPJAX_LOCK, the versions of that file (launch/lock.sh) and no others.
# CLIPJAX_PYTHON names the Python (python3). A stamp in the environment holds the hashes of setup.py
# and of the lock, so that a second run installs nothing.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CLIPJAX_VENV:-$ROOT/.venv}"
cd "$ROOT"
PYTHON="${CLIPJAX_PYTHON:-python3}"
python3_suffices() { "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
# The suffix of compiled modules names the Python that installed packages are for.
compiled_for() { "$1" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'; }
lock_of() { echo "# clipjax[$EXTRA] for $(compiled_for "$1")"; } # the first line of a lock
# Made anew where it was interrupted half-way (a python without pip), and where the python3 that
# comes first on the PATH is another one by now.
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 ||
  { python3_suffices && [ "$(compiled_for "$PYTHON")" != "$(compiled_for "$VENV/bin/python")" ]; }; then
  python3_suffices || {
    echo "clipjax needs Python 3.11 or newer; found $("$PYTHON" --version 2>&1)." >&2
    exit 1
  }
  echo "making the environment $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
fi
STAMP="$VENV/.clipjax-$EXTRA"
WANTED="$(cksum setup.py ${CLIPJAX_LOCK:+"$CLIPJAX_LOCK"})"
if [ "$(cat "$STAMP" 2>/dev/null)" != "$WANTED" ]; then
  INSTALL=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
  echo "installing clipjax[$EXTRA]${CLIPJAX_LOCK:+ by $CLIPJAX_LOCK}"
  if [ -z "${CLIPJAX_LOCK:-}" ]; then
    "${INSTALL[@]}" --editable ".[$EXTRA]"
  elif [ "$(head -n 1 "$CLIPJAX_LOCK")" != "$(lock_of "$VENV/bin/python")" ]; then
    echo "$CLIPJAX_LOCK begins with '$(head -n 1 "$CLIPJAX_LOCK")', here that would be" \
      "'$(lock_of "$VENV/bin/python")': make it here with bash launch/lock.sh $EXTRA" >&2
    exit 1
  else
    "${INSTALL[@]}" --no-deps --requirement "$CLIPJAX_LOCK"
    "${INSTALL[@]}" --no-deps --editable .
    "$VENV/bin/python" -m pip check
  fi
  echo "$WANTED" >"$STAMP"
fi
export PATH="$VENV/bin:$PATH"
