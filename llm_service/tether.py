"""Runs an engine that must not outlive the worker: ``python tether.py COMMAND…``. Needs the standard library alone.

The worker holds the other end of this process's standard input. When the worker dies, however it dies, that pipe
closes, and the whole process group goes: the engine, and whatever the engine has started. The worker starts the tether
as the leader of a group of its own, so the group holds nothing else. SIGTERM is passed to the engine for an orderly
end; the engine's exit code becomes the tether's, 128 + N when signal N ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType


def follow_the_worker() -> None:
    """Wait until the worker is gone, then end the group, this process included."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run ``command`` until it ends."""
    if os.getpgid(0) != os.getpid():
        print("tether: not the leader of a process group of its own; refusing to start", file=sys.stderr)
        return 2
    engine: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if engine is not None:
            engine.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    threading.Thread(target=follow_the_worker, daemon=True).start()
    try:
        engine = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the worker's own command
    except OSError as error:
        print(f"tether: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    code = engine.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
