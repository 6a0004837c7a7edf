#!/usr/bin/env bash
# Measures the mesh beside what it replaces; prints a table and writes a JSON. --help lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The workers' Python, since the baselines hold the model in process.
python="${MESH_ENVS:-${MESH_HOME:-var}/envs}/workers/bin/python"
if [[ ! -x $python ]]; then
    echo "There is no $python yet: ./scripts/start_torch_isolation.sh installs it, and starts the mesh to measure." >&2
    exit 1
fi
export GRPC_ENABLE_FORK_SUPPORT=false # what is forked here is replaced by another program at once
exec "$python" -m bench "$@"
