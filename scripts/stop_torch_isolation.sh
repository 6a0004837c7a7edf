#!/usr/bin/env bash
# Stops the mesh that start_torch_isolation.sh started: all of it, and nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local stop "$@"
