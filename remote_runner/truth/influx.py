"""Writing samples to a run's InfluxDB in the background: a failure is reported once, and nothing waits for it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from remote_runner.secrets import Secrets

DATABASE = "testground"
"""Where Testground's SDKs write, too."""
_TOGETHER_S = 5.0
_MOST_LINES = 20_000
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Point:
    """One point: its series by measurement and tags, its fields, and its time (seconds since the epoch)."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, float]
    at: float

    def line(self) -> str:
        """InfluxDB's line protocol; its time is in nanoseconds."""
        tags = "".join(f",{_escaped(key)}={_escaped(value)}" for key, value in sorted(self.tags.items()) if value)
        fields = ",".join(f"{_escaped(key)}={value:.15g}" for key, value in self.fields.items())
        return f"{_escaped(self.measurement)}{tags} {fields} {round(self.at * 1000)}000000\n"


class Influx:
    """Writes to the InfluxDB at `url` (`INFLUXDB_URL`); `told` gets words about the first thing that goes wrong.

    It is written to once at a time.
    """

    def __init__(self, url: str, told: Callable[[str], None]) -> None:
        self._url = url
        self.told = told
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self.has_failed = False

    def add(self, point: Point) -> None:
        """Write it soon."""
        if not point.fields or self.has_failed or len(self._lines) >= _MOST_LINES:
            return
        self._lines.append(point.line())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER_S, self._write)

    async def flush(self) -> None:
        """Return once everything is there, or cannot be."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                while self._lines or self._writing is not None:
                    self._write()
                    if self._writing is not None:
                        await asyncio.wait({self._writing})

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines and self._writing is None:
            body, self._lines = "".join(self._lines).encode(), []
            self._writing = asyncio.create_task(self._post(body))
            self._writing.add_done_callback(self._written)

    def _written(self, _: asyncio.Task[None]) -> None:
        self._writing = None
        if self._lines and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER_S, self._write)

    async def _post(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await _post(self._url, body)
        except (OSError, ValueError, TimeoutError) as error:
            status = str(error) or "no answer"
        if not status.startswith("2") and not self.has_failed:
            self.has_failed = True
            self._lines = []
            self.told(f"samples are not written to InfluxDB: {Secrets().hide(status)}")


async def _post(url: str, body: bytes) -> str:
    """The status line's end, as `204 No Content`."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 8086)
    head = f"POST {parts.path.rstrip('/')}/write?db={DATABASE} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        head += f"Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=parts.scheme == "https" or None)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        line = (await reader.readline()).decode("latin-1")
        return line.partition(" ")[2].strip()
    finally:
        writer.transport.abort()  # one that reads nothing would hold up a close for ever


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(" ", "\\ ").replace(",", "\\,").replace("=", "\\=").replace("\n", " ")
