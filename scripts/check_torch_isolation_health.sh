#!/usr/bin/env bash
# Prints one row a hop. Exit code 0 when all serve, 1 otherwise. --json for machines, --gateway URL for a remote one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local health "$@"
