#!/usr/bin/env bash
# The whole default test suite on 8 simulated CPU devices, in the environment it makes itself.
#   bash launch/test.sh                 everything that runs by default
#   bash launch/test.sh -m slow         the tests marked slow; any pytest arguments are passed on
#   bash launch/test.sh -m browser      the page of `clipjax serve`, in the chromium on the PATH
set -euo pipefail
EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
mypy
# The tests of a file share what they compile, so that one worker has them all.
SPREAD=(-n "${CLIPJAX_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder)
exec python -m pytest "${SPREAD[@]}" --durations 15 "$@"
