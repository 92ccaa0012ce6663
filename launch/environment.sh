# Sourced by the other launch scripts: makes or reuses the virtual environment `.venv` of this
# checkout (CLIPJAX_VENV names another) and installs the package with the extra that the caller
# names in $EXTRA. A stamp in the environment holds the hash of setup.py, so that a second run
# installs nothing.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CLIPJAX_VENV:-$ROOT/.venv}"
cd "$ROOT"
python3_suffices() { python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
# The suffix of compiled modules names the Python that installed packages are for.
compiled_for() { "$1" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'; }
# Made anew where it was interrupted half-way (a python without pip), and where the python3 that
# comes first on the PATH is another one by now.
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 ||
  { python3_suffices && [ "$(compiled_for python3)" != "$(compiled_for "$VENV/bin/python")" ]; }; then
  python3_suffices || {
    echo "clipjax needs Python 3.11 or newer; found $(python3 --version 2>&1)." >&2
    exit 1
  }
  echo "making the environment $VENV with $(python3 --version)"
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
