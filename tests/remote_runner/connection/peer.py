"""A small agent in Python, by the same session core, for tests of the link alone: it resumes, and echoes.

    PROGRAM session BASE NONCE SESSION EPOCH

Verbs: `echo` (lane 0 comes back), `lines` (`count` lines of text on lane 1, then its sum), `say` (comes back as a
message), `open` (a stream of the agent's own, which echoes), `fail`, `wait` (nothing until it is closed).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote_runner.connection.frames import BreachError
from remote_runner.connection.session import SessionCore, StreamState

LINE = b"%08d the quick brown fox jumps over the lazy dog, and once more for good measure\n"


def program(directory: Path) -> Path:
    """The program, as a file that a host can start."""
    path = directory / "peer"
    root = Path(__file__).resolve().parents[3]
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        "from tests.remote_runner.connection.peer import main\nmain(sys.argv[1:])\n"
    )
    path.chmod(0o755)
    return path


def main(argv: list[str], agent: Callable[[socket.socket, str], Peer] | None = None) -> None:
    """The program of the session: starts the agent where it has to, hands over, and waits."""
    _, base, nonce, session, epoch = argv
    os.chdir(f"{base}/agents")  # a socket's path is short
    path = f"{session}.sock"
    if epoch == "1":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            try:
                asyncio.run((agent or Peer)(listener, base).serve())
            finally:
                Path(path).unlink(missing_ok=True)
                os._exit(0)
        listener.close()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        print(f"{nonce} gone", flush=True)
        return
    socket.send_fds(connection, [json.dumps([nonce, int(epoch)]).encode()], [0, 1])
    connection.recv(1)


class Peer:
    """The agent."""

    def __init__(self, listener: socket.socket, base: str) -> None:
        self.listener = listener
        self.base = base
        self.core = SessionCore(is_client=False)
        self.connection: socket.socket | None = None
        self.fds: tuple[int, int] = (-1, -1)
        self.out: list[bytes | memoryview] = []
        self.over = asyncio.Event()
        self.sources: dict[int, Callable[[], None]] = {}
        self.rest: dict[int, bytes] = {}

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener.setblocking(False)
        loop.add_reader(self.listener, self.accept)
        self.patience = loop.call_later(self.tolerate_s(), self.over.set)
        await self.over.wait()
        self.drop()

    def tolerate_s(self) -> float:
        """How long it waits for another attachment, as its client says."""
        return float((self.core.hello or {}).get("tolerate_s", 20.0))

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.setblocking(True)
        said, fds, _, _ = socket.recv_fds(connection, 4096, 2)
        nonce, epoch = json.loads(said)
        self.drop()
        self.patience.cancel()
        self.connection, self.fds = connection, (fds[0], fds[1])
        for fd in fds:
            os.set_blocking(fd, False)
        self.core.attach()
        name = os.uname()
        greeting = {
            **{"protocol": 1, "agent": "peer", "epoch": epoch, "received": self.core.received, "base": self.base},
            **{"uid": os.getuid(), "user": "u", "sysname": name.sysname, "machine": name.machine, "bits": 64},
            **{"hostname": name.nodename, "boot": "b", "pid": os.getpid(), "address": "192.0.2.1"},
        }
        self.out = [f"{nonce} agent {json.dumps(greeting)}\n".encode()]
        loop = asyncio.get_running_loop()
        loop.add_reader(self.fds[0], self.readable)
        loop.add_reader(connection, self.drop)  # the program of the session was ended
        self.flush()

    def drop(self) -> None:
        if self.connection is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.fds[0])
        loop.remove_reader(self.connection)
        loop.remove_writer(self.fds[1])
        for fd in self.fds:
            os.close(fd)
        self.connection.close()
        self.connection = None
        self.core.detach()
        self.patience = loop.call_later(self.tolerate_s(), self.over.set)

    def readable(self) -> None:
        try:
            data = os.read(self.fds[0], 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        try:
            self.core.receive(data, time.monotonic())
        except BreachError:
            self.drop()
            return
        for stream in self.core.take_touched():
            self.touched(stream)
        for stream in self.core.take_opened():
            self.opened(stream)
        for source in list(self.sources.values()):
            source()
        if self.core.has_bye:
            self.over.set()
        self.core.acknowledge()
        self.flush()

    def flush(self) -> None:
        if self.connection is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            if not self.out:
                for source in list(self.sources.values()):
                    source()
                self.out = self.core.pull(time.monotonic())
                if not self.out:
                    loop.remove_writer(self.fds[1])
                    return
            try:
                written = os.writev(self.fds[1], self.out[:500])
            except BlockingIOError:
                loop.add_writer(self.fds[1], self.flush)
                return
            except OSError:
                self.drop()
                return
            data = b"".join(self.out)[written:]
            self.out = [data] if data else []

    def opened(self, stream: StreamState) -> None:
        head = stream.head.head
        verb = head["verb"]
        if verb == "say":
            self.core.send(stream, {"said": head}, stream.head.fields)
            self.core.close(stream)
        elif verb == "fail":
            self.core.close(stream, {"error": "room", "text": "no room", "path": "/x"})
        elif verb == "open":
            other = self.core.open({"accepted": stream.id})
            other.owner = "echo"
        elif verb == "lines":
            stream.owner = "lines"
            self.sources[stream.id] = self.lines(stream, head["count"])
        elif verb == "pid":
            self.core.send(stream, {"pid": os.getpid()})
            self.core.close(stream)
        elif verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            stream.owner = verb
        self.touched(stream)

    def lines(self, stream: StreamState, count: int) -> Callable[[], None]:
        state: dict[str, Any] = {"next": 0, "rest": b""}

        def go_on() -> None:
            while state["rest"] or state["next"] < count:
                if not state["rest"]:
                    upto = min(count, state["next"] + 700)
                    state["rest"] = b"".join(LINE % n for n in range(state["next"], upto))
                    state["next"] = upto
                taken = self.core.write(stream, 1, state["rest"])
                state["rest"] = state["rest"][taken:]
                if not taken:
                    return
            del self.sources[stream.id]
            self.core.end(stream, 1)
            self.core.send(stream, {"lines": count})
            self.core.close(stream)

        return go_on

    def touched(self, stream: StreamState) -> None:
        if stream.owner == "echo":
            self.echo(stream)

    def echo(self, stream: StreamState) -> None:
        while True:
            data = self.rest.pop(stream.id, None) or self.core.read(stream, 0)
            if data is None:
                return
            if not data:
                self.core.end(stream, 0)
                self.core.close(stream)
                return
            taken = self.core.write(stream, 0, data)
            self.core.consume(stream, 0, taken)
            if taken < len(data):
                self.rest[stream.id] = data[taken:]
                return
