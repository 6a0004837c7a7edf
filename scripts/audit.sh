#!/usr/bin/env bash
# Asks the Python advisory database, by pip-audit, about every version in ops/constraints, or in the files that are named.
# It needs the network: each pin is looked up. What is known without one is checked by tests/contract/test_pins.py.
#   scripts/audit.sh [gateway workers …]
# Exit code 0: nothing known. 1: flaws, printed. 75: the database could not be asked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly tool="pip-audit==2.10.1" cannot=75
home=${MESH_ENVS:-${MESH_HOME:-var}/envs}/audit
if [[ ! -x $home/bin/pip-audit ]]; then
    "$(scripts/find_python.sh)" -m venv "$home"
    "$home/bin/pip" install --quiet "$tool" || { echo "pip-audit cannot be installed here; nothing was asked." >&2; exit $cannot; }
fi
(($# > 0)) || set -- $(basename -s .txt ops/constraints/*.txt)
worst=0
for name in "$@"; do
    echo "── $name"
    # The files hold everything that is installed: nothing has to be resolved, and pip is not needed. Strict, because an
    # index without advisories makes it skip every package and call that success.
    said=$("$home/bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off -r "ops/constraints/$name.txt" 2>&1) && code=0 || code=$?
    echo "$said"
    if ((code != 0)) && grep -qiE "could not be audited|ConnectionError|Could not connect|ServiceError|Max retries|HTTPError" <<<"$said"; then
        echo "The advisory database cannot be reached from here; $name was not asked about." >&2
        exit $cannot
    fi
    ((code == 0)) || worst=1
done
exit $worst
