"""Which processes make up the mesh, and where each listens."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ops.local.failures import OperatorError
from ops.tls.names import CERTIFICATE_OF, CertificateFiles

LOOPBACK = "127.0.0.1"
GATEWAY = "gateway"


@dataclass(frozen=True)
class Worker:
    """What is fixed about a worker: names, defaults of its ports, and the hops by which the gateway reaches it."""

    name: str
    module: str
    prefix: str
    port: int
    metrics_port: int
    url_variable: str
    hops: tuple[str, ...]


WORKERS = (
    Worker("embedding", "embedding_service", "EMBEDDING_", 50051, 9101, "EMBEDDING_SERVICE_URL", ("embedding",)),
    Worker("reranking", "reranking_service", "RERANKING_", 50052, 9102, "RERANKING_SERVICE_URL", ("reranking",)),
    Worker("gpu-services", "gpu_services", "GPU_SERVICES_", 50053, 9103, "GPU_SERVICE_URL", ("chunking", "gpu")),
    Worker("llm", "llm_service", "LLM_", 50054, 9104, "LLM_SERVICE_URL", ("llm",)),
)

HOPS_OF = {worker.name: worker.hops for worker in WORKERS}
"""The hops behind each worker's process."""


MODEL_VARIABLES = (
    "EMBEDDING_MODEL",
    "RERANKING_MODEL",
    "LLM_MODEL",
    "LOCAL_MODELS_PATH",
    "EMBEDDING_ONNX_DIR",
    "RERANKING_ONNX_DIR",
)

ENGINES_APART = ("vllm", "llamacpp")
"""Engines of the LLM worker that have an environment of their own."""


def with_absolute_models(environ: Mapping[str, str], called_from: Path) -> dict[str, str]:
    """The environment in which a model's relative path counts from where the user stands.

    The processes run in the checkout's folder. A value that is no folder from there stays as it is: a name on the hub.
    """
    models = {name: environ[name] for name in MODEL_VARIABLES if environ.get(name, "") not in {"", "demo"}}
    found = {name: str(called_from / value) for name, value in models.items() if (called_from / value).is_dir()}
    return {**environ, **found}


@dataclass(frozen=True)
class Listener:
    """An address that a process will listen on, and the variable that moves it."""

    host: str
    port: int
    variable: str
    process: str


@dataclass(frozen=True)
class Program:
    """One process to run: the environment it runs in, its module, and the variables set for it alone.

    ``engine`` names the environment of what it runs in turn; empty where that is its own, or somebody else's affair.
    """

    name: str
    environment: str
    module: str
    variables: Mapping[str, str]
    engine: str = ""


@dataclass(frozen=True)
class Topology:
    """The whole mesh of one start: what runs here, where it listens, and which capabilities are served elsewhere."""

    programs: tuple[Program, ...]
    listeners: tuple[Listener, ...]
    gateway_url: str
    certificates: CertificateFiles | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The processes' names, in start order."""
        return tuple(program.name for program in self.programs)


def plan(
    environ: Mapping[str, str], *, host: str | None = None, certificates: CertificateFiles | None = None
) -> Topology:
    """The mesh that ``environ`` describes.

    A worker whose ``*_SERVICE_URL`` is set is served elsewhere: the gateway is pointed there and nothing starts here.

    Args:
        environ: the environment that the processes will inherit.
        host: the gateway's address; above ``GATEWAY_HOST``. Workers stay on loopback unless their ``*_HOST`` is set.
        certificates: with which every process serves and calls; None leaves that to the environment.

    Raises:
        OperatorError: a port is not a number from 1 to 65535, or two listeners want the same one.
    """
    programs: list[Program] = []
    listeners: list[Listener] = []
    urls: dict[str, str] = {}
    expected: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for worker in WORKERS:
        if url := environ.get(worker.url_variable):
            elsewhere[worker.name] = url
            continue
        address = environ.get(f"{worker.prefix}HOST") or LOOPBACK
        grpc = Listener(address, *_port(environ, f"{worker.prefix}PORT", worker.port), worker.name)
        metrics = Listener(LOOPBACK, *_port(environ, f"{worker.prefix}METRICS_PORT", worker.metrics_port), worker.name)
        listeners += [grpc, metrics] if metrics.port else [grpc]
        if (address, grpc.port) != (LOOPBACK, worker.port):
            # Only then: the variable stands above config/gateway.yaml, which may name further endpoints.
            urls[worker.url_variable] = _authority(reachable(address), grpc.port)
        variables = {
            f"{worker.prefix}HOST": address,
            grpc.variable: str(grpc.port),
            metrics.variable: str(metrics.port),
        }
        if certificates is not None:
            variables.update(certificates.variables(CERTIFICATE_OF[worker.name]))
            expected.update(dict.fromkeys(worker.hops, CERTIFICATE_OF[worker.name]))
        engine = _engine_of(environ) if worker.name == "llm" else ""
        programs.append(Program(worker.name, "workers", worker.module, variables, engine))

    address = host or environ.get("GATEWAY_HOST") or LOOPBACK
    http = Listener(address, *_port(environ, "GATEWAY_PORT", 8000), GATEWAY)
    listeners.append(http)
    variables = {"GATEWAY_HOST": address, "GATEWAY_PORT": str(http.port), **urls}
    if certificates is not None:
        variables.update(certificates.variables(CERTIFICATE_OF[GATEWAY]))
        # All workers listen on one host: its name alone would let any of them pass for any other.
        variables["MESH_TLS_SERVER_NAMES"] = json.dumps(expected)
    programs.append(Program(GATEWAY, "gateway", "gateway", variables))
    _refuse_shared_ports(listeners)
    return Topology(
        programs=tuple(programs),
        listeners=tuple(listeners),
        gateway_url=f"http://{_authority(reachable(address), http.port)}",
        certificates=certificates,
        elsewhere=elsewhere,
    )


def _engine_of(environ: Mapping[str, str]) -> str:
    """The environment that the LLM worker's engine needs made for it."""
    engine = environ.get("LLM_ENGINE", "")
    return engine if engine in ENGINES_APART and not environ.get("LLM_ENGINE_PYTHON") else ""


def reachable(host: str) -> str:
    """The address under which this machine reaches something that listens on ``host``."""
    try:
        wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host
    return LOOPBACK if wildcard else host


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(environ: Mapping[str, str], variable: str, default: int) -> tuple[int, str]:
    """The port that ``variable`` asks for, and the variable's name. Only a metrics port may be 0, which is off."""
    text = environ.get(variable) or str(default)
    lowest = 0 if variable.endswith("METRICS_PORT") else 1
    if not text.isdecimal() or not lowest <= int(text) <= 65535:
        raise OperatorError(
            f"{variable}={text} is not a port.",
            hint=f"Give a number from {lowest} to 65535, or unset it for {default}.",
        )
    return int(text), variable


def _refuse_shared_ports(listeners: list[Listener]) -> None:
    seen: dict[int, Listener] = {}
    for listener in listeners:
        if other := seen.get(listener.port):
            raise OperatorError(
                f"{listener.variable} and {other.variable} are both {listener.port}.",
                hint=f"Give one of them another port, for example {listener.variable}={listener.port + 1000}.",
            )
        seen[listener.port] = listener
