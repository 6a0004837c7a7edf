"""Requests made from the gateway's own OpenAPI document, right ones and wrong ones: no 5xx, no hang, no surprise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway

schemathesis = pytest.importorskip("schemathesis", reason="the extra test has schemathesis")

CALL_SECONDS = 10
DOCUMENT = create_app(GatewaySettings(), peers=FakePeers().as_peers()).openapi()
_DESCRIBED = [
    (method.upper(), path, "requestBody" in operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if path not in {"/v1/gpu/stream", "/status/stream"}  # have no end
]
CASES = [(method, path, "positive") for method, path, _ in _DESCRIBED]
CASES += [(method, path, "negative") for method, path, has_body in _DESCRIBED if has_body]


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """A gateway before stand-ins for the workers."""
    with RunningGateway(GatewaySettings(), FakePeers()) as running:
        yield running


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_whatever_is_asked_is_answered(gateway: RunningGateway, method: str, path: str, mode: str) -> None:
    """What the document allows, and what it does not: a typed answer in time, never the gateway's own failure."""
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def example(data: st.DataObject) -> None:
        answer = data.draw(cases).call(base_url=gateway.url, timeout=CALL_SECONDS)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0].startswith(("application/json", "application/problem+json"))
            assert "Traceback" not in answer.text

    example()


def test_the_gateway_serves_afterwards(gateway: RunningGateway) -> None:
    """Nothing of it has stayed."""
    case = schemathesis.openapi.from_dict(DOCUMENT)["/health/live"]["GET"].Case()
    assert case.call(base_url=gateway.url, timeout=CALL_SECONDS).status_code == 200
