"""What a transport is: a command whose standard streams reach a POSIX shell on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from remote_runner.connection.transports.openssh import (
    Account,
)
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    HostError,
)

if TYPE_CHECKING:
    pass
from remote_runner.connection.transports.pipes import Pipes

# What a login without a PATH of its own has to find: macOS and Linux keep their own programs there.
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class Transport(Protocol):
    """A way to a host. One process at a time runs.

    is_local: nothing but our own end breaks it, so whoever is behind it need not wait long for us to come again.
    """

    name: str
    is_local: bool
    environ: Mapping[str, str]

    async def start(self, script: bytes, *, first: bool, deadline: Deadline) -> Pipes:
        """Start the process, and have a shell there run the script.

        `first`: for a session's first attachment, where the user's own master may be used.

        Raises `RemoteRunnerError`.
        """
        ...

    def explain(self, status: int | None, said: str) -> HostError:
        """Why it ended before the host answered; `status` is `None` when it was ended at the deadline."""
        ...

    def is_from_host(self, status: int | None) -> bool:
        """Whether that status is one that a program on the host ended with."""
        ...

    def address(self) -> str:
        """Where this machine reached the host, "" where the way there does not tell."""
        ...

    def tidy(self) -> None:
        """Called now and then while the process runs."""

    def last_words(self) -> str:
        """What the process itself had to say of its end."""
        ...

    async def why_ended_there(self) -> str:
        """Why the way itself ended what ran on the host, which still answers; "" where it did not."""
        ...


class CommandTransport:
    """Any command whose standard streams reach a shell on the host (`{host}` is replaced)."""

    is_local = False

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.environ: Mapping[str, str] = dict(environ)
        self._argv = [word.replace("{host}", name) for word in argv]

    async def start(self, script: bytes, *, first: bool, deadline: Deadline) -> Pipes:
        return Pipes(self._argv, self.environ, opening=script)

    def explain(self, status: int | None, said: str) -> HostError:
        what = "did not answer in time" if status is None else f"ended with status {status}"
        return HostError(
            self.name,
            f"the command that reaches it {what} ({self._argv[0]})",
            stderr=said,
            next_step="its standard streams must be those of a POSIX shell on the host; see connect.command "
            "(inventory.yaml)",
        )

    def is_from_host(self, status: int | None) -> bool:
        return True

    def address(self) -> str:
        return ""

    def tidy(self) -> None:
        pass

    def last_words(self) -> str:
        return ""

    async def why_ended_there(self) -> str:
        return ""


class LocalTransport(CommandTransport):
    """This machine: a shell that sees what a login would give it, and `environ` on top."""

    is_local = True

    def __init__(self, name: str = "localhost", environ: Mapping[str, str] | None = None) -> None:
        account = Account.here(environ or {})
        login = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "SHELL": account.shell}
        super().__init__(name, ("/bin/sh", "-s"), {**login, "PATH": _PATH, **(environ or {})})

    def address(self) -> str:
        return "127.0.0.1"
