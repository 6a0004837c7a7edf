"""Keeping the processes alive: the configuration for supervisord, and talking to it over its Unix socket."""

from __future__ import annotations

import http.client
import os
import re
import resource
import socket
import subprocess
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.processes import RUN_ID_VARIABLE, wait_until
from ops.local.topology import Program, Topology

STOP_SECONDS = 25
"""How long a process has to drain and end after SIGTERM; above the workers' drain notice and grace together."""

EXIT_SETTINGS = 78
"""EX_CONFIG, with which each of our processes ends when its settings are wrong."""

# A process that ends sooner than this after its start counts as failed to start, and the wait before the next try
# grows by a second each time: a worker that cannot start does not spin.
_SETTLED_SECONDS = 5
# supervisord gives up after this many failed starts in a row. The wait grows with each, so this is weeks: a port that
# stays taken overnight or a disk that is full until morning should not leave a worker down for good.
_START_RETRIES = 2000
_WANTED_OPEN_FILES = 65536

# How a process ended is in the log alone where it ended so soon: supervisord's answer says 0 there.
_LOG_TAIL_BYTES = 16_384
_EXITED = re.compile(r"exited: (\S+) \((?:exit status (\d+))?")

_HEAD = """\
; Written by each start; changes here are lost.
[supervisord]
nodaemon = true
silent = true
logfile = {logs}/supervisor.log
logfile_maxbytes = 10MB
logfile_backups = 3
pidfile = {run}/supervisord.pid
childlogdir = {logs}
directory = {checkout}
minfds = {open_files}
{user}
[unix_http_server]
file = {socket}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

# SIGTERM goes to the process alone (stopasgroup is off): it drains first, and ends its own children when it is done.
# SIGKILL, for one that did not end in time, goes to its whole group.
_PROGRAM = """\
[program:{name}]
command = {python} -m {module}
directory = {checkout}
environment = {environment}
autostart = true
autorestart = true
startsecs = {settled}
startretries = {retries}
stopsignal = TERM
stopwaitsecs = {stop_seconds}
stopasgroup = false
killasgroup = true
redirect_stderr = true
stdout_logfile = {log}
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
"""


def render_config(topology: Topology, layout: Layout) -> str:
    """The supervisord configuration for a mesh."""
    head = _HEAD.format(
        run=_literal(layout.run),
        logs=_literal(layout.logs),
        checkout=_literal(layout.checkout),
        socket=_literal(layout.supervisor_socket),
        open_files=_open_files(),
        user="user = root\n" if os.geteuid() == 0 else "",
    )
    return "\n".join([head, *(_render_program(program, layout) for program in topology.programs)])


def _render_program(program: Program, layout: Layout) -> str:
    variables = dict(program.variables)
    if program.engine:
        variables["LLM_ENGINE_PYTHON"] = str(layout.python(program.engine))
    return _PROGRAM.format(
        name=program.name,
        python=_quoted(str(layout.python(program.environment))),
        module=program.module,
        checkout=_literal(layout.checkout),
        environment=",".join(f"{name}={_quoted(value)}" for name, value in sorted(variables.items())),
        settled=_SETTLED_SECONDS,
        retries=_START_RETRIES,
        stop_seconds=STOP_SECONDS,
        log=_literal(layout.log_of(program.name)),
    )


def _literal(value: Path) -> str:
    """A path as a configuration value, in which ``%`` would begin an expansion."""
    return str(value).replace("%", "%%")


def _quoted(value: str) -> str:
    """A value inside ``environment`` or ``command``, which supervisord splits as a shell would, after expansion."""
    if '"' in value and "'" not in value:
        # In ``environment`` it knows no escaped quote, but two kinds of quotes.
        return "'" + value.replace("%", "%%") + "'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _open_files() -> int:
    """The limit on open files to ask for: each connection of a client is one, and systems start at 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else max(soft, min(hard, _WANTED_OPEN_FILES))


@dataclass(frozen=True)
class ProcessState:
    """What the supervisor says of one process: ``state`` in its vocabulary (RUNNING, BACKOFF, FATAL, …)."""

    name: str
    state: str
    pid: int
    exit_status: int = 0

    @property
    def down(self) -> bool:
        """Whether it ended, whatever is tried next."""
        return self.state in {"BACKOFF", "FATAL", "EXITED"}

    @property
    def misconfigured(self) -> bool:
        """Whether it ended because its settings are wrong: starting it again changes nothing."""
        return self.down and self.exit_status == EXIT_SETTINGS

    @property
    def is_up(self) -> bool:
        """Whether a process exists."""
        return self.state in {"STARTING", "RUNNING", "STOPPING"}


_NO_PROCESS = ProcessState("", "STOPPED", 0)
_NEVER_SETTLED = ("BACKOFF", "FATAL")


def last_exits(log: str) -> dict[str, int]:
    """The exit status with which each process that a supervisor's log names ended last; 0 where a signal ended it."""
    return {name: int(status or 0) for name, status in _EXITED.findall(log)}


class Supervisor:
    """A running supervisord, addressed by its socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def answers(self) -> bool:
        """Whether a supervisord is there."""
        try:
            self._ask("getState")
        except _GONE:
            return False
        except xmlrpc.client.Fault:
            return True  # it is shutting down, and refuses everything meanwhile
        return True

    def processes(self) -> dict[str, ProcessState]:
        """Every process by name; empty while the supervisor does not answer."""
        try:
            answers = self._ask("getAllProcessInfo")
            ended = any(answer["statename"] in _NEVER_SETTLED for answer in answers)
            exits = last_exits(self._ask("readLog", -_LOG_TAIL_BYTES, 0)) if ended else {}
        except (*_GONE, xmlrpc.client.Fault):
            return {}
        states = (
            ProcessState(answer["name"], answer["statename"], answer["pid"], answer["exitstatus"]) for answer in answers
        )
        return {
            each.name: replace(each, exit_status=exits.get(each.name, 0)) if each.state in _NEVER_SETTLED else each
            for each in states
        }

    def shut_down(self, *, first: str, patience_seconds: float) -> None:
        """Stop the process ``first``, then all others side by side, then the supervisor. Waits only for the first.

        Args:
            first: the process in front, whose requests still need the others while it drains.
            patience_seconds: how long to wait for it.
        """
        try:
            if self.processes().get(first, _NO_PROCESS).is_up:
                self._ask("stopProcess", first, False)
                wait_until(lambda: not self.processes().get(first, _NO_PROCESS).is_up, seconds=patience_seconds)
            # On its own, supervisord would stop one after the other, each with its full time to drain.
            self._ask("stopAllProcesses", False)
            self._ask("shutdown")
        except (*_GONE, xmlrpc.client.Fault):
            return

    def _ask(self, method: str, *arguments: object) -> Any:
        transport = _UnixTransport(self._path)
        with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)


# What a call ends with where no supervisord takes it: no socket, nobody behind it, or gone before it answered.
_GONE = (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError)


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """A connection to the socket, whatever the URL's host says; kept where the base class closes it."""
        connection = _UnixConnection("localhost", path=self._path)
        self._connection = host, connection
        return connection


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, host: str, *, path: Path) -> None:
        super().__init__(host, timeout=5)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def launch(topology: Topology, layout: Layout, *, run_id: str, environ: Mapping[str, str]) -> Supervisor:
    """Start supervisord, which starts every process, in the background. Returns once it takes commands.

    Raises:
        OperatorError: it ended at once; the message carries what it said.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    layout.supervisor_config.write_text(render_config(topology, layout))
    layout.supervisor_config.chmod(0o600)  # the configuration may hold what the environment holds
    layout.supervisor_socket.unlink(missing_ok=True)
    marks = {RUN_ID_VARIABLE: run_id, "MESH_HOME": str(layout.home), "MESH_MODELS": str(layout.models)}
    said = layout.supervisor_output
    with said.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [str(layout.python("supervisor")), "-m", "supervisor.supervisord", "-c", str(layout.supervisor_config)],
            cwd=layout.checkout,
            env={**environ, **marks, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # the terminal's Ctrl-C and hang-up are not for the mesh
        )
    supervisor = Supervisor(layout.supervisor_socket)
    wait_until(lambda: process.poll() is not None or supervisor.answers(), seconds=20, interval=0.05)
    if process.poll() is None and supervisor.answers():
        return supervisor
    text = said.read_text(errors="replace").strip()
    raise OperatorError(f"The supervisor did not start. It said:\n{text}", hint=f"See {layout.log_of('supervisor')}.")
