#!/usr/bin/env bash
# Hurts a mesh of its own (kills, stops, overloads, cuts off) and prints what was measured. With MESH_CHAOS_FULL=1 for as
# long as the promises speak of, on a quiet machine; MESH_CHAOS_REPORT=FILE keeps the figures as JSON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/test.sh chaos "$@"
