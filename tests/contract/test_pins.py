"""What the environments hold is pinned, admitted by pyproject.toml, and free of the flaws that are known; offline."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ops.local import environments
from ops.local.environments import Environment
from ops.local.layout import CHECKOUT, Layout
from ops.local.topology import ENGINES_APART

CONSTRAINTS = CHECKOUT / "ops" / "constraints"
PROJECT = "torch-isolation-mesh"
# They come with a new environment, in the version that Python brings.
TOOLS = {"pip", "setuptools", "wheel"}
ENVIRONMENTS: tuple[Environment, ...] = (
    *environments.mesh_environments(),
    *environments.test_environments(),
    *environments.redis_environments({"VECTOR_CACHE_TYPE": "redis"}),
    *(environments.engine_environment(name) for name in ENGINES_APART),
    environments.engine_environment("vllm", cuda=True),
)
# Python runs every .pth file at each start, which is what a stolen package wants: these two are setuptools'.
KNOWN_PTH = re.compile(r"distutils-precedence\.pth|__editable__\.torch_isolation_mesh-[\w.]+\.pth")


def pins(name: str) -> dict[str, Version]:
    """The exact versions in a constraints file, by canonical name."""
    found: dict[str, Version] = {}
    for line in (CONSTRAINTS / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert re.fullmatch(r"==[^*]+", str(specifier)), f"{name}.txt: {line} is no exact version"
            assert canonicalize_name(pin.name) not in found, f"{name}.txt names {pin.name} twice"
            found[canonicalize_name(pin.name)] = Version(specifier.version)
    return found


FILES = {path.stem: pins(path.stem) for path in sorted(CONSTRAINTS.glob("*.txt"))}


def wanted(environment: Environment) -> Iterator[Requirement]:
    """What pyproject.toml asks for in an environment."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    if environment.extras:
        yield from map(Requirement, project["dependencies"])
    for extra in environment.extras:
        yield from map(Requirement, project["optional-dependencies"][extra])
    yield from map(Requirement, (*environment.first, *environment.packages))


def test_every_environment_has_its_file() -> None:
    """Each environment that the scripts make is pinned by a file that exists."""
    assert {environment.constraints for environment in ENVIRONMENTS} <= FILES.keys()


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: f"{each.name}-{each.layer}-{each.constraints}")
def test_what_is_asked_for_is_pinned_within_its_range(environment: Environment) -> None:
    """Every requirement has a pin, and the range in pyproject.toml admits it: the two cannot drift apart unseen."""
    pinned = FILES[environment.constraints]
    for requirement in wanted(environment):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"ops/constraints/{environment.constraints}.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement}, pinned {pinned[name]}"


def installed(name: str) -> list[Distribution]:
    """What an environment holds; the test is skipped where the environment is not there."""
    found = sorted((Layout.from_environment(os.environ).envs / name).glob("lib/python3*/site-packages"))
    if not found:
        pytest.skip(f"there is no environment {name} here; the scripts make it")
    return list(distributions(path=[str(path) for path in found]))


def admitted_in(name: str) -> Mapping[str, set[Version]]:
    """The pins of all layers of an environment."""
    files = {each.constraints for each in ENVIRONMENTS if each.name == name}
    admitted: dict[str, set[Version]] = {}
    for file in files:
        for package, version in FILES[file].items():
            admitted.setdefault(package, set()).add(version)
    return admitted


@pytest.mark.parametrize("name", sorted({environment.name for environment in ENVIRONMENTS}))
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    """Down to what packages ask for in turn: each distribution in its pinned version, and none that no file names."""
    admitted = admitted_in(name)
    strays = [
        f"{each.name}=={each.version}"
        for each in installed(name)
        if canonicalize_name(each.name) not in {*TOOLS, PROJECT}
        # Which build of a version it is, such as +cpu, is the machine's affair.
        and Version(Version(each.version).public) not in admitted.get(canonicalize_name(each.name), set())
    ]
    assert strays == []


@pytest.mark.parametrize("name", sorted({environment.name for environment in ENVIRONMENTS}))
def test_nothing_unknown_runs_at_pythons_start(name: str) -> None:
    """No .pth file, sitecustomize or usercustomize but setuptools' own two."""
    installed(name)
    (places,) = Layout.from_environment(os.environ).envs.glob(f"{name}/lib/python3*/site-packages")
    strange = [path.name for path in places.glob("*.pth") if not KNOWN_PTH.fullmatch(path.name)]
    strange += [each for each in ("sitecustomize.py", "usercustomize.py") if (places / each).exists()]
    assert strange == []


ADVISORIES: list[dict[str, Any]] = tomllib.loads((CONSTRAINTS / "advisories.toml").read_text())["advisory"]


def flawed(pinned: Mapping[str, Version], advisories: list[dict[str, Any]]) -> list[str]:
    """The pins that an advisory speaks against, with its ids."""
    found = []
    for advisory in advisories:
        for package in advisory["packages"]:
            version = pinned.get(package)
            if version is None:
                continue
            too_old = "fixed_in" in advisory and version < Version(advisory["fixed_in"])
            if too_old or version in map(Version, advisory.get("refuse", ())):
                found.append(f"{package}=={version}: {', '.join(advisory['ids'])}: {advisory['about']}")
    return found


@pytest.mark.parametrize("file", sorted(FILES))
def test_no_pin_has_a_known_flaw(file: str) -> None:
    """No version of the files is one that the table of advisories speaks against."""
    assert flawed(FILES[file], ADVISORIES) == []


def test_the_table_is_well_formed_and_would_be_noticed() -> None:
    """Canonical names, versions that parse, ids to look up; and each line does refuse a version."""
    for advisory in ADVISORIES:
        assert set(advisory) - {"fixed_in", "refuse"} == {"packages", "ids", "about"}
        assert [canonicalize_name(name) for name in advisory["packages"]] == advisory["packages"]
        bad = Version(advisory["refuse"][0]) if "refuse" in advisory else Version("0.0.1")
        for name in advisory["packages"]:
            assert len(flawed({name: bad}, ADVISORIES)) == 1
        assert flawed(dict.fromkeys(advisory["packages"], Version("999")), ADVISORIES) == []


def test_what_stands_in_the_advisories_is_not_asked_for_below_it() -> None:
    """pyproject.toml's own lower bounds are above every flaw that is known, for those who install without our pins."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    lowest: dict[str, Version] = {}
    for requirement in map(Requirement, lines):
        bounds = [Version(each.version) for each in requirement.specifier if each.operator in {">=", "=="}]
        if bounds:
            lowest[canonicalize_name(requirement.name)] = max(bounds)
    assert flawed(lowest, ADVISORIES) == []
