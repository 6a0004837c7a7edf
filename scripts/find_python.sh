#!/usr/bin/env bash
# Prints a Python that can make the mesh's environments, or says what is missing. MESH_PYTHON names one to use.
set -euo pipefail

# The interpreter's own path, so that a later change of PATH or of a version switcher's setting does not matter.
probe='import sys, venv, ensurepip; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)'

for candidate in ${MESH_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if command -v "$candidate" >/dev/null && found=$("$candidate" -c "$probe" 2>/dev/null); then
        echo "$found"
        exit 0
    fi
done

{
    echo "No suitable Python found: the mesh needs version 3.11 or newer with the venv and ensurepip modules."
    for candidate in ${MESH_PYTHON:-python3}; do
        if version=$("$candidate" --version 2>&1); then
            echo "  $candidate is $version$("$candidate" -c 'import venv, ensurepip' 2>/dev/null || echo ', without venv or ensurepip')"
        fi
    done
    echo "On Debian or Ubuntu: sudo apt install python3 python3-venv. With another interpreter: MESH_PYTHON=/path/to/python3.12 $0"
} >&2
exit 1
