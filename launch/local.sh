#!/usr/bin/env bash
# N processes on this machine, joined as the hosts of a pod would be (CPU collectives by gloo): the
# place to find out whether a run survives more than one process. VERB is `train` unless given.
#   bash launch/local.sh N [VERB] [--flag=value ...]
#   bash launch/local.sh --dry_run N ...     prints the commands and runs none
#   CLIPJAX_RESTARTS=0     report how the run ended, and do not start it again (docs/launching.md)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# The standard library is enough for the launcher; the processes are found as ever.
exec python3 -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); from clipjax.processes.launching import main; sys.exit(main())' \
  "$ROOT" local "$@"
