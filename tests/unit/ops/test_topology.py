from __future__ import annotations

from pathlib import Path

import pytest

from ops.local.failures import OperatorError
from ops.local.topology import plan, reachable, with_absolute_models


def test_by_default_everything_runs_here_on_loopback() -> None:
    """Four workers and the gateway, on the documented ports, out of reach for other machines."""
    topology = plan({})
    assert topology.names == ("embedding", "reranking", "gpu-services", "llm", "gateway")
    ports = {listener.process: listener.port for listener in topology.listeners if "METRICS" not in listener.variable}
    assert ports == {"embedding": 50051, "reranking": 50052, "gpu-services": 50053, "llm": 50054, "gateway": 8000}
    assert {listener.host for listener in topology.listeners} == {"127.0.0.1"}
    assert topology.gateway_url == "http://127.0.0.1:8000"


def test_by_default_the_gateways_file_names_the_workers() -> None:
    """The start sets no service URL for a worker in its usual place: the variable would hide what the file says."""
    gateway = plan({}).programs[-1]
    assert gateway.variables == {"GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": "8000"}


def test_a_moved_worker_is_made_known_to_the_gateway() -> None:
    """One variable moves a worker, and the gateway follows."""
    topology = plan({"EMBEDDING_PORT": "61001"})
    assert topology.programs[0].variables["EMBEDDING_PORT"] == "61001"
    assert topology.programs[-1].variables["EMBEDDING_SERVICE_URL"] == "127.0.0.1:61001"


def test_a_worker_served_elsewhere_is_not_started() -> None:
    """Whoever names a service's URL has that service already."""
    topology = plan({"LLM_SERVICE_URL": "models.example:50054"})
    assert "llm" not in topology.names
    assert topology.elsewhere == {"llm": "models.example:50054"}


def test_only_the_gateway_listens_where_host_says() -> None:
    """Opening the gateway to a network does not open the workers to it."""
    topology = plan({"GATEWAY_HOST": "10.0.0.1"}, host="0.0.0.0")
    assert {each.process: each.host for each in topology.listeners}["gateway"] == "0.0.0.0"
    assert {each.host for each in topology.listeners if each.process != "gateway"} == {"127.0.0.1"}
    assert topology.gateway_url == "http://127.0.0.1:8000"


def test_a_metrics_port_of_zero_turns_it_off() -> None:
    """Nothing is reserved for an endpoint that is not wanted."""
    listeners = plan({"LLM_METRICS_PORT": "0"}).listeners
    assert [each.variable for each in listeners if each.process == "llm"] == ["LLM_PORT"]


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "80 80"])
def test_what_is_no_port_is_refused_by_its_variables_name(value: str) -> None:
    """A typing error names the variable that holds it, and the default."""
    with pytest.raises(OperatorError) as refused:
        plan({"GATEWAY_PORT": value})
    assert "GATEWAY_PORT" in refused.value.message
    assert "8000" in refused.value.hint


def test_two_processes_cannot_share_a_port() -> None:
    """Both variables are named, before anything starts."""
    with pytest.raises(OperatorError) as refused:
        plan({"GATEWAY_PORT": "50054"})
    assert {"GATEWAY_PORT", "LLM_PORT"} <= set(refused.value.message.replace(".", "").split())


@pytest.mark.parametrize(
    ("host", "address"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1"), ("box.example", "box.example")]
)
def test_a_wildcard_is_reached_over_loopback(host: str, address: str) -> None:
    """0.0.0.0 is a place to listen at, not one to call."""
    assert reachable(host) == address


@pytest.mark.parametrize(
    ("environ", "engine"),
    [
        ({}, ""),
        ({"LLM_ENGINE": "transformers"}, ""),
        ({"LLM_ENGINE": "vllm"}, "vllm"),
        ({"LLM_ENGINE": "llamacpp"}, "llamacpp"),
        ({"LLM_ENGINE": "vllm", "LLM_ENGINE_PYTHON": "/opt/vllm/bin/python"}, ""),
    ],
)
def test_some_engines_have_an_environment_of_their_own(environ: dict[str, str], engine: str) -> None:
    """It is made when the engine is asked for and nobody brings one along; no other process gets one."""
    engines = {program.name: program.engine for program in plan(environ).programs}
    assert engines.pop("llm") == engine
    assert not any(engines.values())


def test_an_ipv6_address_is_bracketed() -> None:
    """URLs and gRPC targets need the brackets."""
    assert plan({"EMBEDDING_HOST": "::1"}, host="::1").gateway_url == "http://[::1]:8000"
    assert plan({"EMBEDDING_HOST": "::1"}).programs[-1].variables["EMBEDDING_SERVICE_URL"] == "[::1]:50051"


def test_a_models_relative_path_counts_from_where_the_user_stands(tmp_path: Path) -> None:
    """A folder becomes absolute; a hub's name, the demo and every other variable stay as they are."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "demo").mkdir()
    given = {"EMBEDDING_MODEL": "./mine", "RERANKING_MODEL": "owner/model", "LLM_MODEL": "demo", "HOME": "mine"}
    assert with_absolute_models({"EMBEDDING_MODEL": ""}, tmp_path) == {"EMBEDDING_MODEL": ""}
    assert with_absolute_models(given, tmp_path) == {**given, "EMBEDDING_MODEL": str(tmp_path / "mine")}
