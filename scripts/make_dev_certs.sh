#!/usr/bin/env bash
# Makes or renews certificates for development: an authority, and one certificate for each process. --help lists options.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local.certificates --called-from "$called_from" "$@"
