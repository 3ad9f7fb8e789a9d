"""Finds what a test left running here and ends it: control masters, each asked over its socket by the protocol's own
request, and warm processes.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from tests.launcher import end_warm

_TERMINATE = struct.pack(">III", 8, 0x10000005, 1)
_HELLO = struct.pack(">III", 8, 1, 4)


def end_masters(runtime: Path) -> None:
    """Terminate every master and warm process that listens below `runtime`, and wait until none does."""
    end_warm(runtime)
    for path in runtime.rglob("*"):
        if not path.is_socket():
            continue
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(5)
            asking.connect(str(path))
            asking.sendall(_HELLO + _TERMINATE)
            while asking.recv(4096):
                pass  # the end of the connection is the end of the master
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(path.is_socket() and _answers(path) for path in runtime.rglob("*")):
        time.sleep(0.01)


def masters_in(runtime: Path, key: str = "") -> list[int]:
    """The processes of the masters whose sockets lie in `runtime`, of all hosts or of the one with that key."""
    word = f"{runtime}/{key}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if word in command and b"ssh" in command.split(b"\0")[0]:
                found.append(int(entry.name))
    return found


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True
