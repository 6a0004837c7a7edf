"""Nobody is asked for a password: a process that has a terminal never waits at it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from ops.tls.testing import Office

LOOK = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from mesh.tls.certificates import TlsFiles, read
from mesh.tls.diagnosis import Shown, diagnose
terminal, folder = sys.argv[1], Path(sys.argv[2])
os.open(terminal, os.O_RDWR)  # the first one that a session's leader opens is its own
good = TlsFiles(folder / "ca.pem", folder / "me.pem", folder / "me.key")
material = replace(read(good, now=time.time()), key=(folder / "locked.key").read_bytes())
print(diagnose("ipv4:127.0.0.1:9", Shown(material, "me", time.time())))
"""


def test_a_key_that_is_locked_is_no_question(tmp_path: Path) -> None:
    """OpenSSL would ask for the password, and the look at the endpoint would wait for ever."""
    files = Office.open(tmp_path).issue("me")
    key = load_pem_private_key(files.key.read_bytes(), password=None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.key").write_bytes(locked)
    ours, theirs = pty.openpty()
    try:
        looked = subprocess.run(
            [sys.executable, "-c", LOOK, os.ttyname(theirs), str(tmp_path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert looked.stdout == "None\n"
