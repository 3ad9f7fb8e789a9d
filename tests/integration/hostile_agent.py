"""A host whose agent runs nothing, and sends what it likes as an instance's outputs."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path

from remote_runner.connection.bootstrap.program import identity
from remote_runner.connection.session import StreamState
from tests.remote_runner.connection import peer


def put_hostile_agent(base: Path, outputs: bytes) -> None:
    """Let it be what is found in our directory there; `outputs` is what it sends, at most a few KiB."""
    directory = base / "agents"
    directory.mkdir(parents=True, mode=0o700)
    base.chmod(0o700)
    (base / "hostile").write_bytes(outputs)
    name = os.uname()
    program = directory / f"{identity()}-{name.sysname}-{name.machine}"
    root = Path(__file__).resolve().parents[2]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        "from tests.integration.hostile_agent import main\nmain(sys.argv[1:])\n",
        encoding="utf-8",
    )
    program.chmod(0o700)


def main(argv: list[str]) -> None:
    """Its program."""
    peer.main(argv, partial(Hostile, outputs=(Path(argv[1]) / "hostile").read_bytes()))


class Hostile(peer.Peer):
    """The agent."""

    def __init__(self, listener: socket.socket, base: str, outputs: bytes) -> None:
        super().__init__(listener, base)
        self.outputs = outputs

    def opened(self, stream: StreamState) -> None:
        verb = stream.head.head["verb"]
        if verb == "artifact":
            self.core.send(stream, {"have": f"{self.base}/artifacts/x/c"})
            self.core.close(stream)
        elif verb == "run":
            stream.owner = verb
            self.core.send(stream, {"started": {"directory": self.base, "outputs": self.base, "pid": 1}})
            self.core.end(stream, 1)
            self.core.end(stream, 2)
            self.core.send(stream, {"exited": {"status": 0, "reason": "ended", "left": 0, "untold": 0}})
            assert self.core.write(stream, 3, self.outputs) == len(self.outputs)
            self.core.end(stream, 3)
            self.core.send(stream, {"fetched": {"files": 1, "size": 1, "whole": True}})
        else:
            self.core.close(stream, {"error": "breach", "text": verb})

    def touched(self, stream: StreamState) -> None:
        """Whatever is wished at the end is granted."""
        if stream.owner == "run" and (stream.messages or stream.is_closed_there):
            self.core.send(stream, {"cleaned": True, "kept": self.base})
            self.core.close(stream)
            stream.owner = None
