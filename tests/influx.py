"""A stand-in for InfluxDB, which keeps what it is told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer


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
