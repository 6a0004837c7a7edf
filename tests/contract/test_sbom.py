"""The bills of materials: valid CycloneDX, complete, and made by nothing but the Python that they are about."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from packaging.utils import canonicalize_name
from referencing import Registry, Resource

from ops.local.layout import CHECKOUT
from ops.sbom import debian_packages, document, other_environments

SCRIPT = CHECKOUT / "ops" / "sbom.py"
STATUS = """\
Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13.dfsg-1
Description: compression library
 A line that looks like
 Status: something else

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""


def schema_errors(bom: dict[str, Any]) -> list[str]:
    """What CycloneDX's own schema finds wrong."""
    folder = resources.files("cyclonedx.schema") / "_res"
    names = ("bom-1.6", "spdx", "jsf-0.82")
    schemas = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in names}
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    validator = jsonschema.Draft7Validator(schemas["bom-1.6"], registry=registry)
    return [error.message[:300] for error in validator.iter_errors(bom)]


@pytest.fixture(scope="module")
def bom() -> dict[str, Any]:
    """Of this very environment, by a process of its own that can import nothing of ours."""
    made = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "here"], capture_output=True, text=True, check=True, cwd="/"
    )
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_it_is_valid(bom: dict[str, Any]) -> None:
    """CycloneDX 1.6, by its own schema; and the schema does find what is wrong."""
    assert schema_errors(bom) == []
    assert schema_errors({**bom, "components": [{"name": "without a type"}]}) != []


def test_it_lists_everything_once(bom: dict[str, Any]) -> None:
    """Each installed distribution with its version and package URL, and whose it is."""
    there = {canonicalize_name(each.name): each.version for each in distributions(path=_site_packages())}
    listed = {canonicalize_name(each["name"]): each["version"] for each in bom["components"]}
    assert listed == there
    assert len(bom["components"]) == len(there)
    httpx = next(each for each in bom["components"] if each["name"] == "httpx")
    assert httpx["purl"] == f"pkg:pypi/httpx@{httpx['version']}"
    assert httpx["licenses"]


def test_it_tells_who_needs_whom(bom: dict[str, Any]) -> None:
    """A graph over what is there: references that lead somewhere, and httpx leads to httpcore."""
    depends = {each["ref"]: each["dependsOn"] for each in bom["dependencies"]}
    references = {each["bom-ref"] for each in bom["components"]} | {"here"}
    assert depends.keys() == references
    assert {target for targets in depends.values() for target in targets} <= references
    (httpx,) = (targets for reference, targets in depends.items() if reference.startswith("pkg:pypi/httpx@"))
    assert any(target.startswith("pkg:pypi/httpcore@") for target in httpx)


def test_an_images_own_packages_are_listed_too() -> None:
    """Those of Debian that are installed, an epoch and all."""
    system = list(debian_packages(STATUS))
    assert [each["purl"] for each in system] == ["pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64"]
    assert schema_errors(document((), name="image", system=system)) == []


def install(root: Path, environment: str, name: str, version: str, *needs: str) -> Path:
    """A package in an environment of an image; returns the folder of its packages."""
    place = root / environment / "lib/python3.11/site-packages"
    (place / f"{name}-{version}.dist-info").mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in needs),
    ]
    (place / f"{name}-{version}.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")
    return place


def test_every_environment_of_an_image_is_listed(tmp_path: Path) -> None:
    """The engine's beside the worker's, and what the base brings; each finds what it needs in its own."""
    worker = install(tmp_path, "opt/mesh/llm", "httpx", "1.0", "anyio")
    install(tmp_path, "opt/mesh/llm", "anyio", "2.0")
    engine = install(tmp_path, "opt/mesh/workers", "torch", "2.0", "anyio")
    install(tmp_path, "opt/mesh/workers", "anyio", "1.0")
    base = install(tmp_path, "usr/local", "pip", "26.0")
    others = other_environments(tmp_path, [str(worker)])
    assert others == [engine, base]
    bom = document([distributions(path=[str(place)]) for place in (worker, *others)], name="image")
    assert schema_errors(bom) == []
    listed = [f"{each['name']} {each['version']}" for each in bom["components"]]
    assert listed == ["anyio 1.0", "anyio 2.0", "httpx 1.0", "pip 26.0", "torch 2.0"]
    depends = {each["ref"]: each["dependsOn"] for each in bom["dependencies"]}
    assert depends["pkg:pypi/httpx@1.0"] == ["pkg:pypi/anyio@2.0"]
    assert depends["pkg:pypi/torch@2.0"] == ["pkg:pypi/anyio@1.0"]


def test_the_script_writes_one_document_an_environment(tmp_path: Path) -> None:
    """By the environments' names, and it says which there is not."""
    environment = {"PATH": "/usr/bin:/bin", "MESH_ENVS": str(tmp_path / "envs"), "MESH_HOME": str(tmp_path)}
    script = [str(CHECKOUT / "scripts" / "sbom.sh")]
    assert subprocess.run(script, env=environment, capture_output=True).returncode == 1
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "envs" / "one"], check=True)
    made = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert made.stdout == f"{tmp_path}/sbom/one.cdx.json\n"
    written = json.loads((tmp_path / "sbom" / "one.cdx.json").read_text())
    assert (written["metadata"]["component"]["name"], written["components"]) == ("one", [])
    lost = subprocess.run([*script, "two"], env=environment, capture_output=True, text=True)
    assert lost.returncode == 1
    assert "no environment two" in lost.stderr


def _site_packages() -> list[str]:
    return [entry for entry in sys.path if entry.endswith("site-packages") and entry.startswith(sys.prefix)]
