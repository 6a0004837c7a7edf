"""Logs and metrics, the same in every process: one line per request, names that follow Prometheus's conventions."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

from prometheus_client import Counter, Gauge, Histogram, Info

from mesh.context import current_call
from mesh.tracebacks import without_words
from mesh.version import VERSION

# 1 ms to 60 s: a cached embedding at one end, a long document at the other.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

BUILD = Info("mesh_build", "The version of the mesh that this process runs.")
BUILD.info({"version": VERSION})

HOP_CALLS = Counter("mesh_hop_calls_total", "Calls that a hop finished, by outcome.", ["hop", "method", "outcome"])
HOP_LATENCY = Histogram(
    "mesh_hop_call_duration_seconds",
    "Time from a call's start on a hop to its end.",
    ["hop", "method"],
    buckets=LATENCY_BUCKETS,
)
HOP_RETRIES = Counter(
    "mesh_hop_retries_total", "Calls sent once more, by what went wrong before.", ["hop", "method", "reason"]
)
HOP_IN_FLIGHT = Gauge("mesh_hop_calls_in_flight", "Calls that a hop is waiting for.", ["hop"])
HOP_LIMIT = Gauge("mesh_hop_calls_limit", "Calls that a hop lets through at once, as adapted.", ["hop"])
BREAKER_STATE = Gauge("mesh_breaker_state", "0 closed, 1 half-open, 2 open.", ["hop"])
BREAKER_TRANSITIONS = Counter(
    "mesh_breaker_transitions_total", "Changes of a breaker's state, and why.", ["hop", "to", "cause"]
)
ENDPOINT_SERVING = Gauge("mesh_endpoint_serving", "1 while the health probe says SERVING.", ["hop", "endpoint"])
ENDPOINT_EJECTED = Gauge(
    "mesh_endpoint_ejected", "1 while an endpoint's calls fail, so that others get them.", ["hop", "endpoint"]
)
ENDPOINT_CALLS = Counter("mesh_endpoint_calls_total", "Calls sent to an endpoint.", ["hop", "endpoint"])

RPC_CALLS = Counter(
    "mesh_rpc_calls_total", "Calls that a worker finished, by outcome.", ["service", "method", "outcome"]
)
RPC_LATENCY = Histogram(
    "mesh_rpc_call_duration_seconds",
    "Time that a worker took for a call.",
    ["service", "method"],
    buckets=LATENCY_BUCKETS,
)
RPC_IN_FLIGHT = Gauge("mesh_rpc_calls_in_flight", "Calls that a worker is working on.", ["service"])
CAPABILITY_SERVING = Gauge("mesh_capability_serving", "1 while a capability's health is SERVING.", ["service"])


# A program that uses the clients and configures no logging shall not find our lines on its standard error.
logging.getLogger("mesh").addHandler(logging.NullHandler())


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. Fields go in ``extra={"fields": {...}}``; never secrets, never prompts."""
    return logging.getLogger(name)


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """The ``extra`` argument that carries structured fields."""
    return {"fields": values}


def quoting(**values: Any) -> dict[str, Any]:
    """As `fields`, for a line whose exception may quote a request although none is current where it is logged."""
    return {"fields": values, "quotes_requests": True}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The exception's traceback. While a request is served its words may be the client's, and are left out."""
    assert record.exc_info  # noqa: S101 - asked of those that have one
    error = record.exc_info[1]
    private = current_call.get() is not None or hasattr(record, "quotes_requests") or record.name == "asyncio"
    return without_words(error) if private and error is not None else formatter.formatException(record.exc_info)


def _message(record: logging.LogRecord) -> str:
    """The line's message. What asyncio says of a task that failed goes on with the exception's words."""
    message = record.getMessage()
    return message.partition("\n")[0] if record.name == "asyncio" else message


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _message(record),
        }
        call = current_call.get()
        if call is not None:
            line["request_id"] = call.request_id
            if call.traceparent:
                line["trace_id"] = call.trace_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = _traceback(self, record)
        return json.dumps(line, default=str, ensure_ascii=False)


def _on_one_line(value: Any) -> str:
    """A value as text that cannot pretend to be another log line: a client's path may hold any character."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class _TextFormatter(logging.Formatter):
    """One readable line: time, level, message, then the fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of text."""
        values = dict(getattr(record, "fields", {}))
        call = current_call.get()
        if call is not None:
            values.setdefault("request_id", call.request_id)
            if call.traceparent:
                values.setdefault("trace_id", call.trace_id)
        tail = "".join(f" {key}={_on_one_line(value)}" for key, value in values.items())
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        line = f"{stamp} {record.levelname:<7} {self._process}: {_message(record)}{tail}"
        return f"{line}\n{_traceback(self, record)}" if record.exc_info else line


def configure_logging(process: str, log_format: Literal["text", "json"] = "text") -> None:
    """Send every log line of this process to standard error, in one of two forms. Call once, at the start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if log_format == "json" else _TextFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Our lines name no source line, thread or process id, and looking them up costs a tenth of a small request.
    logging._srcfile = None  # documented under "Optimization" in the how-to of logging
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A line per HTTP request of a client library repeats what the hop already says.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
