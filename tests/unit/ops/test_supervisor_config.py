from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from ops.local.layout import Layout
from ops.local.supervisor import STOP_SECONDS, last_exits, render_config
from ops.local.topology import plan


def parse(environ: dict[str, str], home: str = "/srv/mesh") -> configparser.RawConfigParser:
    """The generated configuration as supervisord's own kind of parser reads it."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", " #"))
    layout = Layout.from_environment({"MESH_HOME": home}, Path("/srv/checkout"))
    parser.read_string(render_config(plan(environ), layout))
    return parser


def test_every_process_is_kept_alive_in_its_own_environment() -> None:
    """All restart when they end, and the gateway runs on an interpreter of its own."""
    config = parse({})
    programs = {name.partition(":")[2]: config[name] for name in config.sections() if name.startswith("program:")}
    assert set(programs) == {"embedding", "reranking", "gpu-services", "llm", "gateway"}
    assert all(program["autorestart"] == "true" and program["stopsignal"] == "TERM" for program in programs.values())
    assert shlex.split(programs["gateway"]["command"]) == ["/srv/mesh/envs/gateway/bin/python", "-m", "gateway"]
    assert shlex.split(programs["llm"]["command"]) == ["/srv/mesh/envs/workers/bin/python", "-m", "llm_service"]


def test_the_worker_is_told_of_its_engines_environment() -> None:
    """It runs on its own interpreter and starts vLLM with the other; unless asked, nothing is told."""
    program = parse({"LLM_ENGINE": "vllm"})["program:llm"]
    assert 'LLM_ENGINE_PYTHON="/srv/mesh/envs/vllm/bin/python"' in program["environment"]
    assert shlex.split(program["command"])[0] == "/srv/mesh/envs/workers/bin/python"
    assert "LLM_ENGINE_PYTHON" not in parse({})["program:llm"]["environment"]


def test_a_process_may_drain_before_it_is_killed() -> None:
    """The workers' default drain, half a second of notice and ten of grace, fits with room to spare."""
    config = parse({})
    assert float(config["program:llm"]["stopwaitsecs"]) == STOP_SECONDS > 2 * 10.5


def test_no_log_grows_without_end() -> None:
    """Each process has its own file, rotated."""
    config = parse({})
    assert config["program:llm"]["stdout_logfile"] == "/srv/mesh/logs/llm.log"
    assert config["program:llm"]["stdout_logfile_maxbytes"] == "10MB"


def test_odd_characters_survive_supervisords_quoting() -> None:
    """Blanks, quotes and per cent signs in a path or a value reach the process as they are."""
    config = parse({"GATEWAY_HOST": 'a%b"c d'}, home="/srv/my 100% mesh")
    expanded = re.sub("%%", "%", config["program:gateway"]["environment"])
    assert 'a%b"c d' in [part.removeprefix("GATEWAY_HOST=") for part in shlex.split(expanded.replace(",", " "))]
    command = shlex.split(re.sub("%%", "%", config["program:gateway"]["command"]))
    assert command[0] == "/srv/my 100% mesh/envs/gateway/bin/python"


def test_a_socket_path_fits_into_a_socket_address() -> None:
    """A deep home directory does not stop the supervisor: its socket goes where the path is short."""
    near = Layout.from_environment({"MESH_HOME": "/srv/mesh"}, Path("/srv/checkout"))
    deep = Layout.from_environment({"MESH_HOME": "/srv/" + "deep/" * 30}, Path("/srv/checkout"))
    assert near.supervisor_socket == Path("/srv/mesh/run/supervisor.sock")
    assert len(str(deep.supervisor_socket)) <= 100


def test_how_a_process_ended_at_once_is_read_from_the_supervisors_log() -> None:
    """Its answer has no exit status for one that never settled; the last line about each says it."""
    log = """\
2026-11-21 19:15:10,468 INFO spawned: 'gateway' with pid 17785
2026-11-21 19:15:11,241 WARN exited: gateway (terminated by SIGSEGV (core dumped); not expected)
2026-11-21 19:15:12,010 WARN exited: llm (exit status 78; not expected)
2026-11-21 19:15:13,010 WARN exited: gateway (exit status 78; not expected)
2026-11-21 19:15:14,821 WARN exited: llm (terminated by SIGKILL; not expected)
"""
    assert last_exits(log) == {"gateway": 78, "llm": 0}
