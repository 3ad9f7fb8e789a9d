"""Samples into an InfluxDB: what is written, and that one which fails is told of once."""

from __future__ import annotations

import asyncio
import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from remote_runner.truth.influx import Influx, Point
from tests import influx as stand_in

POINT = Point(
    "remote-runner.host", {"host": "a b,c", "run": "r=1", "none": ""}, {"cpu_s": 1.5, "sent_bytes": 12345678901}, 7.25
)


def test_a_point_as_a_line() -> None:
    assert POINT.line() == ("remote-runner.host,host=a\\ b\\,c,run=r\\=1 cpu_s=1.5,sent_bytes=12345678901 7250000000\n")


def write(url: str, *points: Point) -> list[str]:
    told: list[str] = []

    async def run() -> None:
        influx = Influx(url, told.append)
        for point in points:
            influx.add(point)
            await influx.flush()

    asyncio.run(run())
    return told


def test_points_are_written() -> None:
    with stand_in.Influx(204) as influx:
        assert write(influx.url, POINT, POINT) == []
        assert list(influx.lines()) == [POINT.line().strip()] * 2
        assert influx.paths == {"/write?db=testground"}


def test_one_that_refuses_is_told_of_once_and_left_alone() -> None:
    with stand_in.Influx(404) as influx:
        assert write(influx.url, POINT, POINT) == ["samples are not written to InfluxDB: 404 Not Found"]
        assert len(list(influx.lines())) == 1


def test_one_that_reads_nothing_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_runner.truth.influx._ANSWER_S", 0.3)
    told: list[str] = []

    async def run() -> None:
        release = asyncio.Event()

        async def reads_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()

        server = await asyncio.start_server(reads_nothing, "127.0.0.1", 0, limit=1)
        influx = Influx(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", told.append)
        for _ in range(2):
            influx._lines = [POINT.line() * 200_000]  # more than the sockets hold
            await influx.flush()
        left = {task for task in asyncio.all_tasks() if "_post" in str(task)}
        if left:
            await asyncio.wait(left, timeout=1.0)
        assert all(task.done() for task in left)
        release.set()
        server.close()
        await server.wait_closed()

    asyncio.run(run())
    assert told == ["samples are not written to InfluxDB: no answer"]


def test_one_that_is_not_there() -> None:
    (words,) = write("http://127.0.0.1:1", POINT, POINT)
    assert words.startswith("samples are not written to InfluxDB: ")


def test_a_login_goes_as_a_header() -> None:
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        assert write(f"http://user:pass%40word@127.0.0.1:{server.server_port}/", POINT) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == ["Basic " + base64.b64encode(b"user:pass@word").decode()]


def test_what_it_does_not_take_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_runner.truth.influx._MOST_LINES", 2)
    with stand_in.Influx(204) as influx:

        async def run() -> None:
            writer = Influx(influx.url, lambda words: None)
            for _ in range(5):
                writer.add(POINT)
            await writer.flush()

        asyncio.run(run())
        assert len(list(influx.lines())) == 2
