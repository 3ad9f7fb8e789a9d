"""Load for a sync service, and what it costs: started by `benchmarks/rows/sync_service.py`, in a network of its own.

    python -m benchmarks.sync_load CLIENTS PROGRAM [WORD …]

starts the program, which has to listen on port 5050 of loopback, and prints one JSON object with the fields of `Cost`.
Plain sockets and frames made once: an SDK here would take more processor time than either service does.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

PORT = 5050
MESSAGES = 20
BARRIERS = 9
RATE_S = 3.0
_WAIT_S = 60.0
_KEY = "run:r:plan:p:case:c:"
_TEXT, _MASKED = b"\x81", 0x80
_UPGRADE = (
    f"GET / HTTP/1.1\r\nHost: localhost:{PORT}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass(frozen=True)
class Cost:
    """What one start of a service has shown."""

    publish_s: float
    """From a publish to its message at a subscriber, the median of `MESSAGES` one after the other."""
    barrier_s: float
    """From the last entry into a state to the last answer to the barriers of all clients on it, the median of some."""
    entries_per_s: float
    """signal_entry, each client with one under way."""
    cpu_s_per_entry: float
    """Processor time of the service for one of them."""
    client_cpu_s_per_entry: float
    """The same of this program: where both together fill the machine, the rate is the machine's."""
    memory_bytes: int
    """Resident, with all clients connected."""


class Client:
    """One connection; a response is counted by its end, since frames here hold one newline each."""

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", PORT)) -> None:
        self.socket = socket.create_connection(address, _WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_UPGRADE.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        if b" 101 " not in head:
            raise RuntimeError(f"no WebSocket: {head!r}")

    def ask(self, frame: bytes, answers: int = 1) -> None:
        """Send a request and read so many responses."""
        self.socket.sendall(frame)
        self.read(answers)

    def read(self, answers: int) -> None:
        """Read so many responses."""
        while answers > 0:
            data = self.socket.recv(65536)
            if not data:
                raise RuntimeError("the service closed a connection")
            answers -= data.count(b"}\n")


def request(**fields: object) -> bytes:
    """A request as a frame; its mask is 0, so that the bytes are the text's own."""
    text = json.dumps({"id": "0", "is_cancel": False, **fields}).encode()
    length = bytes([_MASKED | len(text)]) if len(text) < 126 else bytes([_MASKED | 126]) + len(text).to_bytes(2)
    return _TEXT + length + bytes(4) + text


def signal(state: str) -> bytes:
    """A request to enter a state."""
    return request(signal_entry={"state": f"{_KEY}states:{state}"})


def measure(clients: list[Client], pid: int) -> Cost:
    """Everything, one after the other."""
    publish_s = _publish(*clients[:2])
    barrier_s = statistics.median(_barrier(clients, f"all{number}") for number in range(BARRIERS))
    service_cpu_s, own_cpu_s, began_s = _cpu_s(pid), time.process_time(), time.monotonic()
    entries = _entries(clients)
    took_s = time.monotonic() - began_s
    return Cost(
        publish_s,
        barrier_s,
        entries / took_s,
        (_cpu_s(pid) - service_cpu_s) / entries,
        (time.process_time() - own_cpu_s) / entries,
        _memory_bytes(pid),
    )


def _publish(publisher: Client, subscriber: Client) -> float:
    topic = f"{_KEY}topics:t"
    subscriber.socket.sendall(request(subscribe={"topic": topic}))
    publish = request(publish={"topic": topic, "payload": "m"})
    publisher.ask(publish)
    subscriber.read(1)
    took_s: list[float] = []
    for _ in range(MESSAGES):
        began_s = time.monotonic()
        publisher.socket.sendall(publish)
        subscriber.read(1)
        took_s.append(time.monotonic() - began_s)
        publisher.read(1)
    return statistics.median(took_s)


def _barrier(clients: list[Client], state: str) -> float:
    enter = signal(state)
    barrier = request(barrier={"state": f"{_KEY}states:{state}", "target": len(clients)})
    for client in clients[1:]:
        client.ask(enter)
        client.socket.sendall(barrier)
    clients[0].socket.sendall(barrier)
    began_s = time.monotonic()
    clients[0].socket.sendall(enter)
    clients[0].read(2)
    for client in clients[1:]:
        client.read(1)
    return time.monotonic() - began_s


def _entries(clients: list[Client]) -> int:
    enter, entries = signal("rate"), 0
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ)
            client.socket.sendall(enter)
        until_s = time.monotonic() + RATE_S
        while time.monotonic() < until_s:
            for key, _ in selector.select(_WAIT_S):
                asking = key.fileobj
                assert isinstance(asking, socket.socket)
                asking.recv(4096)
                asking.sendall(enter)
                entries += 1
    return entries


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def main(words: list[str]) -> None:
    """Start the service, load it, end it."""
    with ExitStack() as stack:
        service = stack.enter_context(subprocess.Popen(words[1:], stdout=sys.stderr))
        stack.callback(service.kill)
        until_s = time.monotonic() + _WAIT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                    break
            if service.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"{words[1]} does not listen on port {PORT}")
            time.sleep(0.01)  # nothing tells when a foreign program listens
        clients = [Client() for _ in range(int(words[0]))]
        for client in clients:
            stack.enter_context(client.socket)
        print(json.dumps(asdict(measure(clients, service.pid))))


if __name__ == "__main__":
    main(sys.argv[1:])
