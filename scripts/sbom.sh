#!/usr/bin/env bash
# Writes what is installed, as CycloneDX documents, into var/sbom.
#   scripts/sbom.sh                     every environment that there is
#   scripts/sbom.sh gateway workers     these environments
#   scripts/sbom.sh --image NAME[:TAG]  a container image: all of its Python packages and Debian's
set -euo pipefail
[[ ${1:-} == --help ]] && exec sed -n '2,5s/^# \?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
envs=${MESH_ENVS:-${MESH_HOME:-var}/envs}
out=${MESH_HOME:-var}/sbom
mkdir -p "$out"

write() { # name of the document, command that prints it
    local target="$out/$1.cdx.json"
    shift
    "$@" >"$target.new"
    mv "$target.new" "$target"
    echo "$target"
}

of_image() {
    docker run --rm -i --network none --entrypoint python "$1" - --system "$1" <ops/sbom.py
}

if [[ ${1:-} == --image ]]; then
    image=${2:?which image? scripts/sbom.sh --image NAME[:TAG]}
    write "${image//[\/:]/-}" of_image "$image"
    exit
fi
if (($# == 0)); then
    for python in "$envs"/*/bin/python; do
        [[ -x $python ]] && set -- "$@" "$(basename "$(dirname "$(dirname "$python")")")"
    done
    (($# > 0)) || { echo "There is no environment in $envs; the start script and scripts/test.sh make them." >&2; exit 1; }
fi
for name in "$@"; do
    python=$envs/$name/bin/python
    [[ -x $python ]] || { echo "There is no environment $name in $envs." >&2; exit 1; }
    write "$name" "$python" -I ops/sbom.py "$name"
done
