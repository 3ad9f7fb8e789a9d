"""Both sync services side by side: `python -m tests.testground.live_sync RECORDING`, in a network of its own.

Starts `sync-service`, whose port cannot be chosen, and the embedded one, replays the recording against each, and prints
one JSON object with what came from `official` and `embedded`, and what our `client` was told by the official one.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from testground.sync.client import SyncClient
from testground.sync.protocol import OFFICIAL_LIMIT_BYTES
from testground.sync.service import SyncService
from tests.hosts import which
from tests.testground.sync_replay import Event, SocketWire, as_meant, load, replay

PORT = 5050
TEXT = {"b": 1, "a": "<&>", "n": 2**53 + 1, "f": 1.0}
"""A payload that the two write differently."""
_START_S = 30.0


def main(recording: Path) -> None:
    """Replay, and print what came."""
    recorded = load(recording) + list(_not_recorded())
    with (
        SyncService() as embedded,
        subprocess.Popen([which("sync-service")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as official,
    ):
        try:
            until_s = time.monotonic() + _START_S
            while not _listens():
                if official.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError("sync-service does not listen")
                time.sleep(0.01)  # nothing tells when a foreign program listens
            came = {
                "official": replay(recorded, SocketWire(PORT, keeps_order=False)),
                "client": _told(),
                "embedded": replay(as_meant(recorded), SocketWire(embedded.port)),
            }
        finally:
            official.kill()
    json.dump(came, sys.stdout)


def _told() -> list[object]:
    with (
        SyncClient(port=PORT, run="r", plan="p", case="c") as client,
        SyncClient(port=PORT, run="r", plan="p", case="c") as other,
    ):
        messages = other.subscribe("t")
        return [
            client.signal_entry("s"),
            other.signal_and_wait("s", 2, 30),
            client.publish("t", "x" * 30_000),
            client.publish("t", {"é": [1.5, None]}),
            len(str(messages.next(30))),
            messages.next(30),
            client.signal_event({"message_event": {"message": "m"}}),
        ]


def _not_recorded() -> Iterator[Event]:
    """Requests that the recording lacks: the text of payloads, frames at the limit and above it."""
    asked: list[dict[str, object]] = [{"publish": {"topic": "text", "payload": TEXT}}, {"subscribe": {"topic": "text"}}]
    for number, request in enumerate(asked):
        yield _out("text", json.dumps({"id": str(number), **request}))
    for size_bytes in (OFFICIAL_LIMIT_BYTES, OFFICIAL_LIMIT_BYTES + 1):
        empty = json.dumps({"id": "0", "signal_entry": {"state": "s"}})
        yield _out(f"frame-{size_bytes}", empty.replace('"s"', f'"{"s" * (size_bytes - len(empty) + 1)}"'))


def _out(scenario: str, frame: str) -> Event:
    return {"scenario": scenario, "client": "a", "way": "out", "frame": frame}


def _listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
