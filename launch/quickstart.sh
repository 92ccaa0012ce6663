#!/usr/bin/env bash
# Trains a small CLIP on 3,552 emoji, each drawn by two artists, and their names, on this machine, and
# asks it for the names of 392 that it has never seen. Needs python3 with venv and pip, nothing else. Run it again to go on
# after an interruption, or to see the finished run.
#   bash launch/quickstart.sh
#   CLIPJAX_WORKDIR=runs/seed1 bash launch/quickstart.sh --config.seed=1     another recipe, another run
set -euo pipefail
EXTRA=demo
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# On Linux glibc keeps what a step freed, in huge pages, and does not have it cleared for the next one (docs/performance.md).
KEEP=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184
export GLIBC_TUNABLES="${GLIBC_TUNABLES-$KEEP}"
exec clipjax train --config configs/quickstart.py --workdir "${CLIPJAX_WORKDIR:-runs/quickstart}" "$@"
