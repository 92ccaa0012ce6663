#!/usr/bin/env bash
# The whole default test suite on 8 simulated CPU devices, in the environment it makes itself.
#   bash launch/test.sh                 everything that runs by default
#   bash launch/test.sh -m slow         the tests marked slow; any pytest arguments are passed on
set -euo pipefail
EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
mypy
exec python -m pytest -n "${CLIPJAX_TEST_WORKERS:-2}" --dist worksteal --durations 15 "$@"
