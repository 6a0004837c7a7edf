"""The browser that the pages are tested in: the machine's own Chromium, or Debian's package where that can be had."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.local.console import Console
from ops.local.environments import Environment, Installer
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.processes import Command, run_logged

CHROMIUM_ARGUMENTS = (
    "--no-sandbox",  # which root, as in a container, has none of; the pages are the project's own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Without these it looks for its maker's hosts.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_NEEDED = "Install Debian's package chromium, or run this as root on a Debian that reaches its packages."

PLAYWRIGHT = Environment("test", "test", layer="browser", extras=("browser",))
"""What drives the browser, beside the tests' own environment. A browser of its own is not downloaded."""


def find_chromium() -> Path | None:
    """The machine's Chromium."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(found) if found else None


def ensure_chromium(layout: Layout, console: Console, environ: Mapping[str, str]) -> None:
    """Install Chromium where there is none.

    Raises:
        OperatorError: it cannot be installed here.
    """
    if find_chromium() is not None:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise OperatorError("There is no Chromium on this machine.", hint=_NEEDED)
    quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
    with console.step("chromium: Debian's package") as step:
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            run_logged(Command([apt, *arguments], layout.checkout, quiet, layout.install_log), step)


def without_browser(
    parts: Sequence[str], installer: Installer, layout: Layout, console: Console, environ: Mapping[str, str]
) -> str:
    """Get what the part needs. Returns why there is none; empty where there is, or nobody asks for it.

    Raises:
        OperatorError: the part was named, and cannot be run.
    """
    if parts and "browser" not in parts:
        return ""
    try:
        ensure_chromium(layout, console, environ)
        installer.ensure((PLAYWRIGHT,))
    except OperatorError as error:
        if parts:
            raise
        return f"The pages are not tested in a browser here: {error.message}"
    return ""
