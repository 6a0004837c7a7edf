"""Nothing that crosses a border of a process can run code where it arrives: checked over the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

CHECKOUT = Path(__file__).parents[2]
PACKAGES = (
    "mesh", "inference", "gateway", "gpu_services", "embedding_service", "reranking_service", "llm_service", "ops",
    "previous",
)  # fmt: skip
# What reads objects of any class, or hands them between processes by doing so.
MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve",
     "multiprocessing", "torch.multiprocessing", "concurrent.futures.process", "zmq"}
)  # fmt: skip
CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "recv_pyobj", "send_pyobj", "unsafe_load", "full_load", "read_pickle",
     "ProcessPoolExecutor", "allow_pickle", "ParseDict"}
)  # fmt: skip
PROTOS = ("chunking", "embedding", "gpu", "llm", "reranking")


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a source that could bring an object to life."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, each.name) for each in names if _is_listed(each.name))
            case ast.ImportFrom(module=str(module), names=names):
                full = [module, *(f"{module}.{each.name}" for each in names)]
                yield from (
                    (node.lineno, each) for each in full if _is_listed(each) or each.rpartition(".")[2] in CALLS
                )
            case ast.Call(func=func):
                yield from ((node.lineno, each) for each in _dangers(node, func))
            case ast.Attribute(attr=attr) if attr in {"__reduce__", "__reduce_ex__", "__setstate__"}:
                yield node.lineno, attr
            case _:
                pass


def _is_listed(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in MODULES)


def _dangers(call: ast.Call, func: ast.expr) -> Iterator[str]:
    name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
    owner = func.value.id if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) else ""
    # re.compile makes patterns, model.eval() and model.compile() are torch's.
    if name in CALLS and not (isinstance(func, ast.Attribute) and name in {"eval", "exec", "compile"}):
        yield name
    if (owner, name) == ("torch", "load") or ((owner, name) == ("yaml", "load")):
        yield f"{owner}.{name}"
    for keyword in call.keywords:
        if keyword.arg in {"allow_pickle", "trust_remote_code"} and not _is_false(keyword.value):
            yield keyword.arg


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def sources() -> list[Path]:
    """Every source of the project that a process runs."""
    return [
        path for package in PACKAGES for path in sorted((CHECKOUT / package).rglob("*.py")) if "pb" not in path.parts
    ]


def test_no_source_can_bring_a_foreign_object_to_life() -> None:
    """No pickle or its relatives, no eval, no unsafe YAML, no model's own code."""
    checked = sources()
    found = [
        f"{path.relative_to(CHECKOUT)}:{line}: {name}" for path in checked for line, name in findings(path.read_text())
    ]
    assert len(checked) > 200
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import multiprocessing.connection as c",
        "from multiprocessing import Queue",
        "from concurrent.futures import ProcessPoolExecutor",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "import yaml\nyaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "from google.protobuf.json_format import ParseDict",
        "class A:\n    def f(self): self.__reduce__()",
    ],
)
def test_the_check_sees_what_it_is_for(source: str) -> None:
    """Each way is found."""
    assert list(findings(source))


def test_the_check_lets_the_rest_be() -> None:
    """Patterns are compiled, models are put into evaluation, arrays are read as numbers."""
    source = "import re\nre.compile(p)\nmodel.eval()\nnumpy.load(p, allow_pickle=False)\nyaml.safe_load(t)"
    assert list(findings(source)) == []


@pytest.mark.parametrize("name", PROTOS)
def test_no_message_carries_a_message_of_any_type(name: str) -> None:
    """``google.protobuf.Any`` would let the sender choose what the receiver reads."""
    file: FileDescriptor = import_module(f"mesh.pb.{name}.v1.{name}_pb2").DESCRIPTOR
    assert [each.name for each in file.dependencies if each.name.endswith(("any.proto", "struct.proto"))] == []
