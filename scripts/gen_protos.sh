#!/usr/bin/env bash
# Writes the stubs in mesh/pb from protos/. Needs the test environment, which scripts/test.sh makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${MESH_ENVS:-${MESH_HOME:-var}/envs}/test/bin/python" -m grpc_tools.protoc -Imesh/pb=protos \
    --python_out="${1:-.}" --pyi_out="${1:-.}" --grpc_python_out="${1:-.}" protos/*/v1/*.proto
