"""What the documents for operators tell them to run, set and look for exists; all links lead on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from uvicorn.config import STARTUP_FAILURE

from gateway.settings import GatewaySettings
from mesh.errors import MeshError
from mesh.serving.worker import EXIT_PORT_IN_USE, EXIT_STUCK
from mesh.settings import EXIT_SETTINGS
from ops.docs.configuration import render
from ops.local.layout import CHECKOUT

DOCS = CHECKOUT / "docs"
OPERATIONS, MIGRATING = DOCS / "operations.md", DOCS / "migrating.md"
_NAMES = "certificates containers keys migrating observability operations security status-page tracing"
FOR_OPERATORS = (CHECKOUT / "README.md", *(DOCS / f"{name}.md" for name in _NAMES.split()))
ALL = sorted((*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")))
PROCESSES = ("mesh", "inference", "gateway", "gpu_services", "embedding_service", "reranking_service", "llm_service")
# Made by following the text, or on the reader's side.
_NOT_IN_THE_REPOSITORY = ("var/", "models/onnx", "config/gateway.yaml.backup")
_VARIABLE = re.compile(
    r"\b(?:(?:GATEWAY|EMBEDDING|RERANKING|GPU_SERVICES|LLM|MESH|VECTOR_CACHE|HF)_[A-Z][A-Z0-9_]*"
    r"|[A-Z]+_SERVICE_URL|REDIS_URL|ENABLE_VECTOR_CACHE|PIP_INDEX_URL)\b"
)
_MISSPELT = {"EMBEDDING_MODLE"}
_OF_TESTS = {"MESH_BROWSER_SCREENSHOTS"}
_REASON = re.compile(r"`((?!OTEL_)[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

every = pytest.mark.parametrize("document", FOR_OPERATORS, ids=lambda path: path.name)


def spans(document: Path) -> list[str]:
    """All code of a document: the words between backticks, and the lines of blocks."""
    text = document.read_text(encoding="utf-8")
    inline = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    return inline + [line for _, block in _BLOCK.findall(text) for line in block.splitlines()]


def blocks(document: Path, language: str) -> list[str]:
    """The blocks in one language."""
    return [block for found, block in _BLOCK.findall(document.read_text(encoding="utf-8")) if found == language]


def anchors(document: Path) -> set[str]:
    """What a link to a heading of the document may end with."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", document.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def source() -> str:
    """The code of all processes."""
    files = [file for name in PROCESSES for file in sorted((CHECKOUT / name).rglob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if "pb" not in file.parts)


def reasons() -> set[str]:
    """Every reason that an error can carry: written somewhere, or a class's own."""

    def classes(of: type[MeshError]) -> Iterator[type[MeshError]]:
        yield of
        for each in of.__subclasses__():
            yield from classes(each)

    return {each.code.upper() for each in classes(MeshError)} | set(
        re.findall(r"[\"']([A-Z][A-Z0-9_]+)[\"']", source())
    )


def help_of(*command: str) -> str:
    """What a command says when it is asked for help."""
    environ = {**os.environ, "MESH_PYTHON": sys.executable, "COLUMNS": "200"}
    result = subprocess.run([*command, "--help"], cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("document", ALL, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every link of any document to a file, and to a heading of one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", document.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert file.suffix != ".md" or not anchor or anchor in anchors(file), target


@every
def test_scripts_and_modules_know_what_they_are_given(document: Path) -> None:
    """Each script can be run, each module can be found, and both know the options that they are shown with."""
    own = re.compile(r"(?:\./)?(scripts/\w+\.sh)([^|#`;&]*)|python -m ([\w.]+)([^|#`;&]*)")
    for match in (match for span in spans(document) for match in own.finditer(span)):
        script, script_given, module, module_given = (each or "" for each in match.groups())
        options = set(re.findall(r"(?<!\S)(--[a-z][\w-]*)", script_given + module_given))
        if script:
            assert os.access(CHECKOUT / script, os.X_OK), script
        else:
            assert importlib.util.find_spec(module) is not None, module
        if options:
            # Commands of a command have options of their own: keys.sh add --tenant.
            command = re.match(r"\s*([a-z]+)\b", script_given or module_given)
            own_command = [command.group(1)] if command else []
            program = [str(CHECKOUT / script)] if script else [sys.executable, "-m", module]
            told = help_of(*program, *own_command)
            assert options <= set(re.findall(r"--[a-z][\w-]*", told)), match.group()


@every
def test_settings_are_settings(document: Path) -> None:
    """Every environment variable stands in the configuration reference, or is one that a Compose file takes."""
    composed = "\n".join(file.read_text(encoding="utf-8") for file in (CHECKOUT / "ops/docker").glob("*.yml"))
    known = set(_VARIABLE.findall(render())) | set(re.findall(r"\$\{(\w+)", composed)) | _OF_TESTS
    told = {name for span in spans(document) for name in _VARIABLE.findall(span)} - _MISSPELT
    # GPU_SERVICES_MAX_* stands for several.
    assert {name for name in told if not name.endswith("_")} <= known


@every
def test_paths_are_there(document: Path) -> None:
    """Every file and folder of the repository that is named; what the reader makes is left out."""
    roots = {path.name for path in CHECKOUT.iterdir()}
    named = {
        word
        for span in spans(document)
        for word in re.findall(r"(?<![\w/.:$-])(?:\.{0,2}/)?[\w.-]+(?:/[\w.-]+)+", span)
        if word.removeprefix("./").split("/")[0] in roots
    }
    for word in {word.removeprefix("./").rstrip("/.") for word in named}:
        if not word.startswith(_NOT_IN_THE_REPOSITORY):
            assert (CHECKOUT / word).exists(), word


def test_reasons_are_given_somewhere() -> None:
    """What the tables of symptoms list is what the processes say: reasons in /status, codes in answers."""
    known = reasons() | set(_VARIABLE.findall(render()))
    # The cache's table names errors of Redis's own library.
    text = OPERATIONS.read_text(encoding="utf-8").partition("\n### The vector cache\n")[0]
    told = set(_REASON.findall(text))
    rows = re.findall(r"^\| [345]\d\d[^|]*\|([^|]*)\|", text, re.M)
    codes = {code.upper() for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert len(told) > 20
    assert len(codes) > 20
    assert told | codes <= known


def test_exit_codes_are_those_that_processes_end_with() -> None:
    """Who reads a code in the supervisor's log finds what it means."""
    (told,) = re.findall(
        r"^Exit codes in `supervisor\.log`: (.*?)\.\n\n", OPERATIONS.read_text(encoding="utf-8"), re.M | re.S
    )
    assert set(map(int, re.findall(r"\b\d+\b", told))) == {STARTUP_FAILURE, EXIT_PORT_IN_USE, EXIT_STUCK, EXIT_SETTINGS}


def test_metrics_are_published() -> None:
    """Every metric that an operator is told to watch is made by some process."""
    code = source()
    for name in {name for span in spans(OPERATIONS) for name in re.findall(r"(?<![\w-])mesh_[a-z_]+[a-z]\b", span)}:
        assert re.search(rf"[\"']{name.removesuffix('_total')}(?:_total)?[\"']", code), name


def test_every_alert_has_its_action() -> None:
    """The alerts of Prometheus's rules and the rows of the table are the same."""
    text = OPERATIONS.read_text(encoding="utf-8")
    section = text[text.index("\n## Alerts\n") : text.index("\n## Backup\n")]
    told = re.findall(r"^\| `(\w+)` \|", section, re.M)
    rules = [file.read_text(encoding="utf-8") for file in (CHECKOUT / "ops").glob("prometheus/*.y*ml")]
    assert sorted(told) == sorted(re.findall(r"^\s*- alert: (\w+)$", "\n".join(rules), re.M))


def test_the_configuration_that_is_shown_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's file of after, as the migration shows it, is one that the gateway reads."""
    (shown,) = blocks(MIGRATING, "yaml")
    assert yaml.safe_load(shown)["gateway"]["services"]
    file = tmp_path / "gateway.yaml"
    file.write_text(shown, encoding="utf-8")
    monkeypatch.setenv("GATEWAY_CONFIG", str(file))
    assert GatewaySettings.load().services.reranking.url == "reranking-services:50052"


def test_the_code_that_is_shown_imports_what_is_there() -> None:
    """Every Python block is Python, and every name that it takes from the mesh or from the way back is there."""
    for block in blocks(MIGRATING, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in {"mesh", "previous"}:
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
