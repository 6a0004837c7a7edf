#!/usr/bin/env bash
# Makes, rotates, revokes and lists the gateway's API keys: keys.sh add --tenant NAME, keys.sh --help. Needs only Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m gateway.keys "$@"
