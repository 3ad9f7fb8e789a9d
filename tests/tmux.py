"""A terminal that somebody looks at: a tmux server of the test's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LIMIT_S = 60.0


@dataclass(frozen=True)
class Tmux:
    """One window of a fixed size, whose shell is gone when the server is."""

    socket: Path

    @classmethod
    @contextmanager
    def started(cls, directory: Path, width: int, height: int, environ: Mapping[str, str], cwd: Path) -> Iterator[Tmux]:
        """A terminal with `sh` in it, in `cwd` with these variables."""
        tmux = cls(directory / "tmux")
        words = [f"{name}={value}" for name, value in environ.items() if name not in ("TERM", "NO_COLOR", "PS1")]
        shell = shlex.join(["env", "-i", *words, "TERM=tmux-256color", "PS1=$ ", "sh"])
        tmux.do("new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(cwd), shell)
        try:
            yield tmux
        finally:
            tmux.do("kill-server")

    def do(self, *words: str) -> str:
        """A command of tmux's; what it prints."""
        argv = ["tmux", "-S", str(self.socket), "-f", "/dev/null", *words]
        environ = {**os.environ, "TERM": "xterm-256color"}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True, timeout=_LIMIT_S).stdout

    def type(self, line: str) -> None:
        """Type a line, with Return."""
        self.do("send-keys", line, "Enter")

    def press(self, key: str) -> None:
        """Press a key, as tmux names it: C-c."""
        self.do("send-keys", key)

    def screen(self, *, scrolled: bool = False, colours: bool = False) -> str:
        """What is to be seen; with what has scrolled away, with the colours as escape sequences."""
        return self.do("capture-pane", "-p", *(["-S", "-"] if scrolled else []), *(["-e"] if colours else []))

    def wait_for(self, seen: Callable[[str], object], *, scrolled: bool = False) -> str:
        """Look until it is to be seen; the screen then."""
        until_s = time.monotonic() + _LIMIT_S
        while not seen(screen := self.screen(scrolled=scrolled)):
            assert time.monotonic() < until_s, screen
            time.sleep(0.05)
        return screen
