"""InfluxDB: the real one of the test's own, and a stand-in, which keeps what it is told."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from tests.hosts import free_port, which

_LIMIT_S = 60.0


def influxd_argv(directory: Path, port: int) -> list[str]:
    """What starts the real one at this port of the loopback, with its files there."""
    directory.mkdir()
    config = directory / "influxdb.conf"
    config.write_text(
        f'reporting-disabled = true\nbind-address = "127.0.0.1:{free_port()}"\n'
        f'[http]\nbind-address = "127.0.0.1:{port}"\n[meta]\ndir = "{directory}/meta"\n'
        f'[data]\ndir = "{directory}/data"\nwal-dir = "{directory}/wal"\n',
        encoding="utf-8",
    )
    return [which("influxd"), "-config", str(config)]


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The series (name, tags, columns, values) that the real one answers with, of Testground's database."""
    body = urllib.parse.urlencode({"q": query, "db": "testground"}).encode()
    with urllib.request.urlopen(f"{url}/query", body, timeout=_LIMIT_S) as answer:
        (result,) = json.load(answer)["results"]
    assert "error" not in result, f"{query}: {result['error']}"
    found: list[dict[str, Any]] = result.get("series", [])
    return found


@contextmanager
def influxd(directory: Path) -> Iterator[str]:
    """The URL of a real one that has Testground's database, empty."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = influxd_argv(directory, port)
    log = directory / "log"
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            until_s = time.monotonic() + _LIMIT_S
            while True:
                try:
                    ask(url, "CREATE DATABASE testground")
                    break
                except (urllib.error.URLError, OSError):
                    assert process.poll() is None, log.read_text(errors="replace")
                    assert time.monotonic() < until_s
                    time.sleep(0.05)  # nothing tells when a foreign process listens
            yield url
        finally:
            process.terminate()


class Influx:
    """A server that takes what an InfluxDB would, and answers with `status`; `paths` are those it was asked."""

    def __init__(self, status: int, text: bytes = b"") -> None:
        said = self._said = queue.SimpleQueue[str]()
        paths = self.paths = set[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                paths.add(self.path)
                for line in self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines():
                    said.put(line)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Influx:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def lines(self) -> Iterator[str]:
        """What has come and was not asked for yet."""
        while not self._said.empty():
            yield self._said.get()
