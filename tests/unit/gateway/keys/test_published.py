"""A gateway in a container: what decides is where others reach it, not where it listens."""

from __future__ import annotations

import pytest

from gateway.keys.building import with_keys
from gateway.settings import GatewaySettings
from mesh.settings import SettingsError


def test_published_for_this_machine_alone_it_asks_for_no_key() -> None:
    """It listens on all addresses of its container, and is open like one on loopback."""
    assert with_keys(GatewaySettings(host="0.0.0.0", published_host="127.0.0.1")) is None


@pytest.mark.parametrize("published", ["0.0.0.0", "192.168.1.7", ""])
def test_published_beyond_this_machine_it_needs_keys(published: str) -> None:
    """As a gateway that listens there itself."""
    with pytest.raises(SettingsError, match="no keys"):
        with_keys(GatewaySettings(host="0.0.0.0", published_host=published))
