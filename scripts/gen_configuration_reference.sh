#!/usr/bin/env bash
# Writes docs/configuration.md from the settings models; --check only compares. Needs the test environment, which
# scripts/test.sh makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${MESH_ENVS:-${MESH_HOME:-var}/envs}/test/bin/python" -m ops.docs.configuration "$@"
