"""Prints what the Python that runs it has installed, as a CycloneDX 1.6 document: a software bill of materials.

It needs nothing but Python, and so runs in an environment and, through standard input, in a container without anything
being put into that: see scripts/sbom.sh. With ``--system`` it is about the whole image: other environments in it (the
engine's beside the language model's worker), what its base has installed, and Debian's packages are listed too.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROJECT = "torch-isolation-mesh"
_DPKG = Path("/var/lib/dpkg/status")
_IN_AN_IMAGE = (
    "opt/mesh/*/lib/python3*/site-packages",
    "usr/local/lib/python3*/site-packages",
    "usr/lib/python3/dist-packages",
)
"""Where the images, and Docker's and Debian's Pythons below them, keep what is installed."""
_EXPRESSION = re.compile(r"[A-Za-z0-9.+() -]{1,120}")
_RELATION = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?[^;]*(;.*)?")
_TOOL = "mesh-sbom"


def document(
    environments: Iterable[Iterable[Distribution]], *, name: str, system: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The bill of materials of one environment or several, each of which finds what it needs in itself.

    Args:
        environments: their distributions; of one that is there twice the first counts, as it does for an import.
        name: what the document is about: an environment or an image.
        system: components beside Python's.
    """
    there: dict[str, Distribution] = {}
    needs: dict[str, set[str]] = {}
    for found in environments:
        own = {_canonical(each.name): each for each in reversed(list(found))}
        for each in own.values():
            wanted = {_canonical(needed) for needed in _needed(each)}
            there.setdefault(_reference(each), each)
            needs.setdefault(_reference(each), set()).update(_reference(own[needed]) for needed in wanted & own.keys())
    about = {"type": "application", "bom-ref": name, "name": name}
    depends = [{"ref": name, "dependsOn": sorted(there)}]
    depends += [{"ref": reference, "dependsOn": sorted(known)} for reference, known in needs.items()]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {"components": [{"type": "application", "name": _TOOL}]},
            "component": about,
            "properties": [
                {"name": "python:version", "value": platform.python_version()},
                {"name": "platform", "value": platform.platform()},
            ],
        },
        "components": [*(_component(there[reference]) for reference in sorted(there)), *system],
        "dependencies": sorted(depends, key=lambda each: str(each["ref"])),
    }


def debian_packages(status: str) -> Iterator[dict[str, Any]]:
    """Components for the installed packages in the text of dpkg's status file."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status") != "install ok installed":
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields.get("Architecture", "all")
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def other_environments(root: Path, known: Iterable[str]) -> list[Path]:
    """The folders of an image that hold packages and are not among those that are ``known``."""
    places = sorted(place for pattern in _IN_AN_IMAGE for place in root.glob(pattern))
    return [place for place in places if str(place) not in set(known)]


def _component(each: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _reference(each),
        "name": each.name,
        "version": each.version,
        "purl": _reference(each),
    }
    if licenses := _licenses(each):
        component["licenses"] = licenses
    return component


def _licenses(each: Distribution) -> list[dict[str, Any]]:
    """What a package says of its licence: an SPDX expression, or a name. A licence's whole text is no name."""
    expression = _field(each, "License-Expression")
    if _EXPRESSION.fullmatch(expression):
        return [{"expression": expression}]
    name = _field(each, "License")
    if not name or "\n" in name or len(name) > 120:
        classifiers = each.metadata.get_all("Classifier") or []
        names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
        return [{"license": {"name": text}} for text in names]
    return [{"license": {"name": name}}]


def _field(each: Distribution, name: str) -> str:
    return str((each.metadata.get_all(name) or [""])[0]).strip()


def _needed(each: Distribution) -> Iterator[str]:
    """The names that a package asks for; those of its extras are left out, others that it may not need here stay."""
    for line in each.requires or ():
        if (found := _RELATION.fullmatch(line)) and "extra ==" not in (found[3] or ""):
            yield found[1]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _reference(each: Distribution) -> str:
    """A package URL. One that is built from this repository is on no index, and says so."""
    version = quote(each.version, safe="")
    kind = "generic" if _canonical(each.name) == PROJECT else "pypi"
    return f"pkg:{kind}/{_canonical(each.name)}@{version}"


def main(arguments: list[str]) -> int:
    """Print the document of the interpreter that runs this. The first argument that is no option names it."""
    names = [each for each in arguments if not each.startswith("--")]
    name = names[0] if names else Path(sys.prefix).name
    # What lies beside the script, or where it was started, is not installed.
    path = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    environments = [distributions(path=path)]
    system: list[dict[str, Any]] = []
    if "--system" in arguments:
        environments += [distributions(path=[str(place)]) for place in other_environments(Path("/"), path)]
        system = list(debian_packages(_DPKG.read_text("utf-8"))) if _DPKG.exists() else []
    print(json.dumps(document(environments, name=name, system=system), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
