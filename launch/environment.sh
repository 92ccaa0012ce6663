# Sourced by the other launch scripts: makes or reuses the virtual environment `.venv` of this
# checkout and installs the package with the extra that the caller names in $EXTRA.
# A stamp in the environment holds the hash of setup.py, so that a second run installs nothing.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CLIPJAX_VENV:-$ROOT/.venv}"
cd "$ROOT"
# A folder that was interrupted half-way has a python without pip: it is made anew.
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "clipjax needs Python 3.11 or newer; found $(python3 --version 2>&1)." >&2
    exit 1
  }
  echo "making the environment $VENV"
  python3 -m venv --clear "$VENV"
fi
STAMP="$VENV/.clipjax-$EXTRA"
WANTED="$(cksum setup.py)"
if [ "$(cat "$STAMP" 2>/dev/null)" != "$WANTED" ]; then
  echo "installing clipjax[$EXTRA]"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$EXTRA]"
  echo "$WANTED" >"$STAMP"
fi
export PATH="$VENV/bin:$PATH"
