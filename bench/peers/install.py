"""Makes the peers' environments."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from bench.peers.catalog import PEERS, Peer
from ops.local.console import Console
from ops.local.environments import Environment, Installer
from ops.local.failures import OperatorError
from ops.local.layout import Layout


def install(layout: Layout, environments: Path) -> dict[str, str]:
    """Install what is missing or out of date, from PyPI; torch from ``MESH_TORCH_INDEX_URL`` where that is set.

    Returns:
        Why not, by the environment's name, for those that could not be installed.
    """
    installer = Installer(replace(layout, envs=environments), Console(sys.stderr), os.environ)
    failed: dict[str, str] = {}
    for environment in wanted(os.environ.get("MESH_TORCH_INDEX_URL", "")):
        try:
            installer.ensure([environment])
        except OperatorError as error:
            failed[environment.name] = f"it could not be installed. {error.message}"
    return failed


def wanted(torch_index_url: str) -> tuple[Environment, ...]:
    """Every peer's environment, each once."""
    distinct = {peer.environment.name: peer.environment for peer in PEERS}
    return tuple(replace(environment, first_index=torch_index_url) for environment in distinct.values())


def is_installed(peer: Peer, environments: Path) -> bool:
    """Whether its environment is there, and whole."""
    return (environments / peer.environment_name / f".installed-{peer.environment.layer}").exists()
