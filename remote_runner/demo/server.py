"""A second machine for `fab demo` and the tests: an ssh server on loopback, in a process of its own.

    python -m remote_runner.demo.server --directory DIR

makes keys and a home in DIR, prints one JSON line once it listens (see `DemoServer`), and ends, with everything
it started, when its stdin ends. `DemoHost` does this for a Python program.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from remote_runner.deadline import Deadline
from remote_runner.errors import DemoServerError
from remote_runner.machine.process import start

if TYPE_CHECKING:
    import subprocess  # noqa: TID251 - for annotations

_INSTALL = "pip install asyncssh"


@dataclass(frozen=True)
class DemoServer:
    """A running server: where it listens, its process id, and the files that get a client in."""

    host: str
    port: int
    user: str
    pid: int
    host_key: Path
    identity_file: Path
    known_hosts: Path
    home: Path

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read the line that the server prints once it listens."""
        found = json.loads(line)
        paths = {key: Path(found[key]) for key in ("host_key", "identity_file", "known_hosts", "home")}
        return cls(host=found["host"], port=found["port"], user=found["user"], pid=found["pid"], **paths)

    def inventory_entry(self) -> dict[str, object]:
        """The `hosts` entry of an inventory that reaches this server whatever the user's own ssh configuration says."""
        return {
            "address": self.host,
            "ssh": {
                "host": self.host,
                "user": self.user,
                "port": self.port,
                "identity_file": str(self.identity_file),
                "options": {
                    "UserKnownHostsFile": _ssh_path(self.known_hosts),
                    "GlobalKnownHostsFile": "/dev/null",
                    "StrictHostKeyChecking": "yes",
                    "IdentitiesOnly": "yes",
                    "IdentityAgent": "none",
                    "ProxyCommand": "none",  # OpenSSH 9.2 takes this for ProxyJump, too
                },
            },
        }


def _ssh_path(path: Path) -> str:
    # ssh splits the value at spaces and expands % tokens in it (ssh_config(5)).
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


class DemoHost:
    """A context manager that runs a demo server with its files in `directory` and ends it afterwards.

    Raises `DemoServerError` where asyncssh is missing or the server does not come up.
    """

    def __init__(self, directory: Path, *, start_timeout_s: float = 30.0) -> None:
        self.directory = directory
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: list[int] = []

    @property
    def server(self) -> DemoServer:
        """The running server; only inside the `with` block."""
        assert self._process is not None, "the demo server runs only inside its with block"
        return self._server

    def inventory_entry(self) -> dict[str, object]:
        """The inventory's `hosts` entry for this host."""
        return self.server.inventory_entry()

    def __enter__(self) -> Self:
        check_asyncssh()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self.directory / "server.log"
        far_in, near_in = os.pipe()
        near_out, far_out = os.pipe()
        self._pipes = [near_in, near_out]
        try:
            with log.open("wb") as log_file:
                # In a session of its own: Ctrl-C at the terminal ends it only after its last client.
                process = start(
                    [sys.executable, "-m", "remote_runner.demo.server", "--directory", str(self.directory)],
                    stdin=far_in,
                    stdout=far_out,
                    stderr=log_file.fileno(),
                )
        except BaseException:
            self._end()
            raise
        finally:
            os.close(far_in)
            os.close(far_out)
        self._process = process
        try:
            self._server = DemoServer.from_line(
                self._first_line(process, near_out, Deadline.after(self._start_timeout_s))
            )
        except BaseException:
            self._end()
            raise
        return self

    def _first_line(self, process: subprocess.Popen[bytes], stdout_fd: int, deadline: Deadline) -> str:
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([stdout_fd], [], [], deadline.timeout_s)
            deadline.check("starting the demo ssh server")
            piece = os.read(stdout_fd, 4096) if readable else b""
            if not piece:
                status = process.wait()
                stderr = (self.directory / "server.log").read_text(errors="replace")
                raise DemoServerError(f"the demo ssh server ended with status {status}", stderr=stderr)
            line += piece
        return line.decode()

    def _end(self) -> None:
        for fd in self._pipes:  # the end of its stdin is the server's sign to end
            os.close(fd)
        self._pipes = []
        if self._process is not None:
            self._process.wait()
            self._process = None

    def __exit__(self, *_: object) -> None:
        self._end()


def check_asyncssh() -> None:
    """Raise `DemoServerError` with the command that installs asyncssh, where it is missing."""
    if find_spec("asyncssh") is None:
        raise DemoServerError("the demo ssh server needs the package asyncssh", next_step=_INSTALL)


def main(argv: Sequence[str]) -> int:
    """Serve until stdin ends; the exit status."""
    import argparse
    import asyncio

    parser = argparse.ArgumentParser(
        prog="python -m remote_runner.demo.server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--directory", type=Path, required=True, help="where keys and home are made")
    arguments = parser.parse_args(argv)
    try:
        check_asyncssh()
    except DemoServerError as error:
        print(error, file=sys.stderr)
        return 1
    from remote_runner.demo.sshd import serve

    try:
        asyncio.run(serve(arguments.directory.absolute()))
    except OSError as error:
        print(f"the demo ssh server cannot serve from {arguments.directory}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
