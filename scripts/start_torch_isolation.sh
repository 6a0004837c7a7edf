#!/usr/bin/env bash
# Installs, if need be, and starts the mesh on this machine. --help lists the options.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local start --called-from "$called_from" "$@"
