#!/usr/bin/env bash
# Runs every check of the project in environments of its own; name parts to run only them. --help lists them.
# The part vllm installs vLLM, some gigabytes; where that fails, all checks run without it, and its tests say why they skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/find_python.sh)
exec "$python" -m ops.local checks "$@"
