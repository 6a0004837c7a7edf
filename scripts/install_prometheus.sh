#!/usr/bin/env bash
# Brings Prometheus and promtool for the checks that run them: unpacked from Debian's package into var/envs/prometheus.
# Where they are on PATH already it does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local.prometheus
