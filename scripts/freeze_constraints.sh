#!/usr/bin/env bash
# Pins what the environments hold now in ops/constraints. Run it after changing a requirement, with the checks green.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local freeze "$@"
