#!/usr/bin/env bash
# The tests with the lowest versions that setup.py allows, in an environment beside `.venv`; pytest
# arguments are passed on. Types are not checked: older libraries have fewer of them.
#   bash launch/test_lowest.sh tests/losses      the python3 that comes first is 3.11, the lowest, too
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export CLIPJAX_VENV="${CLIPJAX_VENV:-$ROOT/.venv-lowest}" PIP_CONSTRAINT
PIP_CONSTRAINT="$(mktemp)"
trap 'rm -f "$PIP_CONSTRAINT"' EXIT
(cd "$ROOT" && python3 - setup.py) >"$PIP_CONSTRAINT" <<'PYTHON'
"""The lower bound of each requirement of the core and the tests, as one version for pip."""
import ast
import re
import sys

for node in ast.parse(open(sys.argv[1], encoding="utf-8").read()).body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
        for item in node.value.elts:
            if isinstance(item, ast.Constant):
                name, lowest = re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", item.value).groups()
                print(f"{name}=={lowest}")
PYTHON
EXTRA=test
source "$ROOT/launch/environment.sh"
python -m pytest -n "${CLIPJAX_TEST_WORKERS:-2}" --dist worksteal "$@"
