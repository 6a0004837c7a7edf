"""A name in a certificate may call what its rule says, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from mesh.errors import CallerRefused
from mesh.settings import SettingsError
from mesh.testing import FakeClock
from mesh.tls.access import MOST_TOLD, TELL_AGAIN_SECONDS, Access
from mesh.tls.settings import TlsSettings

EMBEDDING = "embedding.v1.EmbeddingService"
RULES = {
    "gateway": ["*"],
    "bulk": [EMBEDDING],
    "monitor": [f"{EMBEDDING}/Info", "llm.v1.LlmService/Info"],
    "nobody": [],
}


class Caller:
    """A call's context, as far as its certificate goes."""

    def __init__(self, **auth: list[bytes]) -> None:
        self._auth = auth

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """What gRPC's core knows of the connection."""
        return self._auth


@pytest.mark.parametrize(
    ("names", "method", "may"),
    [
        (["gateway"], "Embed", True),
        (["GateWay"], "Embed", True),
        (["localhost", "gateway"], "Embed", True),
        (["bulk"], "Embed", True),
        (["monitor"], "Embed", False),
        (["monitor"], "Info", True),
        (["nobody"], "Info", False),
        (["localhost"], "Info", False),
        (["gateway.evil.example"], "Info", False),
        (["*"], "Info", False),
        ([], "Info", False),
    ],
)
def test_only_a_rule_for_a_name_lets_it_call(names: list[str], method: str, may: bool) -> None:
    """Everything, a service, or a method; without a rule nothing."""
    assert Access(RULES).allows(names, EMBEDDING, method) is may


def test_a_rule_for_one_service_says_nothing_of_another() -> None:
    """Also where one name begins like the other."""
    access = Access(RULES)
    assert not access.allows(["bulk"], "reranking.v1.RerankingService", "Rerank")
    assert not access.allows(["bulk"], f"{EMBEDDING}Two", "Embed")


def test_a_common_name_is_no_name() -> None:
    """Nothing proves it, so nothing follows from it."""
    access = Access(RULES)
    access.require(Caller(peer_dns=[b"gateway"]), EMBEDDING, "Embed")
    for caller in (Caller(x509_common_name=[b"gateway"]), Caller(), Caller(peer_dns=[b"\xff"])):
        with pytest.raises(CallerRefused):
            access.require(caller, EMBEDDING, "Embed")


def refuse(access: Access, name: str, *, times: int) -> None:
    """Have a certificate with this name turned away."""
    for _ in range(times):
        with pytest.raises(CallerRefused):
            access.require(Caller(peer_dns=[name.encode()]), EMBEDDING, "Embed")


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, int | None]]:
    """Message, names and number of calls of every line since this was asked last."""
    lines = [(each.getMessage(), each.__dict__["fields"]) for each in caplog.records]
    caplog.clear()
    return [(message, values["names"], values.get("calls")) for message, values in lines]


def test_a_refused_peer_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each name in some seconds, and the number of the calls that got none."""
    clock = FakeClock()
    access = Access(RULES, clock)
    with caplog.at_level(logging.WARNING):
        refuse(access, "stranger", times=500)
        refuse(access, "another", times=1)
        first = ("a certificate may not call this", "stranger", None)
        assert told(caplog) == [first, ("a certificate may not call this", "another", None)]
        clock.advance(TELL_AGAIN_SECONDS)
        refuse(access, "stranger", times=1)
        assert told(caplog) == [("further calls of a certificate were refused", "stranger", 499), first]


def test_many_refused_names_cannot_fill_the_log_either(caplog: pytest.LogCaptureFixture) -> None:
    """From some number on they are told of together, and take no more memory."""
    clock = FakeClock()
    access = Access(RULES, clock)
    with caplog.at_level(logging.WARNING):
        for number in range(MOST_TOLD + 50):
            refuse(access, f"stranger-{number}", times=1)
        assert told(caplog)[MOST_TOLD:] == [("a certificate may not call this", "further certificates", None)]
        clock.advance(TELL_AGAIN_SECONDS)
        refuse(access, "stranger-0", times=1)
        assert told(caplog)[0] == ("further calls of a certificate were refused", "further certificates", 49)


def test_an_address_of_mail_is_no_name() -> None:
    """An authority that checks names of hosts may put any address of mail beside them."""
    everything = {"x509_subject_alternative_name": [b"gateway", b"laptop"]}
    with pytest.raises(CallerRefused):
        Access(RULES).require(Caller(peer_email=[b"gateway"], peer_dns=[b"laptop"], **everything), EMBEDDING, "Embed")


def test_hosts_are_compared_in_any_case_and_uris_as_they_are_written() -> None:
    """Two URIs that differ in case are two callers."""
    access = Access({"spiffe://mesh/Gateway": ["*"], "Host": ["*"]})
    assert access.allows(["spiffe://mesh/Gateway"], EMBEDDING, "Embed")
    assert not access.allows(["spiffe://mesh/gateway"], EMBEDDING, "Embed")
    assert access.allows(["hOST"], EMBEDDING, "Embed")


@pytest.mark.parametrize("rule", ["Embed", "", "/embedding.v1.EmbeddingService/Embed", f"{EMBEDDING}/", "**"])
def test_a_rule_that_could_never_match_stops_the_start(rule: str) -> None:
    """It would lock somebody out, or be thought to."""
    with pytest.raises(ValueError, match="names nothing"):
        Access({"gateway": [rule]})


def test_settings_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three files, a misspelt name and a rule that names nothing stop the start, by the variable's name."""
    assert not TlsSettings.load({}).is_on
    monkeypatch.setenv("MESH_TLS_CA", "ca.pem")
    with pytest.raises(SettingsError, match="belong together"):
        TlsSettings.load()
    monkeypatch.setenv("MESH_TLS_CERTIFICATE", "me.pem")
    monkeypatch.setenv("MESH_TLS_KEY", "me.key")
    assert TlsSettings.load().is_on
    monkeypatch.setenv("MESH_TLS_ALLOW", '{"gateway": ["Embed"]}')
    with pytest.raises(SettingsError, match="MESH_TLS_ALLOW"):
        TlsSettings.load()
    monkeypatch.delenv("MESH_TLS_ALLOW")
    with pytest.raises(SettingsError, match="MESH_TLS_CERTIFICATE"):
        TlsSettings.load({"MESH_TLS_CERTIFICAT": "x"})
