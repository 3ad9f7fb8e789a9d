"""A headless Chromium that a test drives by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.hosts import which
from tests.needs import need

_LIMIT_S = 60.0


class Page:
    """The one page of a browser: what it said and what it asked of a network is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        """Errors and warnings of the console, and exceptions that nobody took."""
        self.requests: list[str] = []
        """What was asked for, but for the page itself and what it carries."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=_LIMIT_S))
            if said.get("id") == self._number:
                assert "error" not in said, (method, said["error"])
                result: dict[str, Any] = said["result"]
                return result
            self._heard(said.get("method"), said.get("params", {}))

    def _heard(self, method: str | None, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"])[:2000])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("data:", "blob:", "file:")):
                    self.requests.append(url)

    def dark(self, dark: bool) -> None:
        """What the system prefers."""
        value = "dark" if dark else "light"
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def size(self, width: int, height: int) -> None:
        """The window's size."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def open(self, path: Path) -> float:
        """Open a file and wait until all of it is drawn; how long that took, in seconds."""
        before_s = time.monotonic()
        self.command("Page.navigate", url=path.as_uri())
        self.until("document.documentElement?.dataset.drawn === 'true'")
        return time.monotonic() - before_s

    def until(self, expression: str) -> None:
        """Wait until it is true; raises `AssertionError` after a minute."""
        give_up_s = time.monotonic() + _LIMIT_S
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < give_up_s, (expression, self.problems)
            self.value("new Promise(done => requestAnimationFrame(() => done(1)))")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is, a promise's value when it is there."""
        found = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def key(self, name: str, text: str = "") -> None:
        """Press and release a key."""
        more = {"text": text} if text else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", key=name, **more)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=name)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the pointer: mousePressed, mouseMoved, mouseReleased."""
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", **more)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot, of the whole page or of what the window shows."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": clip} if whole else {}))
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A browser of its own, with its profile in `directory`; ended afterwards."""
    need("chromium")
    argv = [
        which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={directory}", "about:blank",
    ]  # fmt: skip
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            endpoint = next(
                line.partition("listening on ")[2].strip() for line in process.stderr if "DevTools listening on" in line
            )
            # The browser's own endpoint leads to that of its page.
            with connect(endpoint, max_size=None) as socket:
                socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                targets = json.loads(socket.recv(timeout=_LIMIT_S))["result"]["targetInfos"]
            target = next(one["targetId"] for one in targets if one["type"] == "page")
            address = endpoint.partition("/devtools/")[0]
            with connect(f"{address}/devtools/page/{target}", max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.stderr.read()
