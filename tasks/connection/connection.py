"""A `fabric.Connection` whose `run`, `put` and `get` are requests to a host's agent.

With it a user's own Fabric tasks reach a host as `ssh` does at their prompt, under the names of the inventory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NoReturn

import fabric
import invoke
from fabric.transfer import Result as TransferResult
from invoke.runners import Runner

from remote_runner.background import Background
from remote_runner.connection.agent import Agent
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import HostEntry
from tasks.command_line.task import Failed
from tasks.connection.runner import AgentRunner
from tasks.connection.transfer import get_file, put_file
from tasks.parallel import on_each
from tasks.plan import Plan


class AgentConnection(fabric.Connection):
    """What a user's task gets as its first argument under `-H`; `name` is the host's inventory name.

    The host is connected to when something is first asked of it.
    """

    def __init__(
        self, entry: HostEntry, plan: Plan, shared: Shared, background: Background, config: invoke.Config
    ) -> None:
        super().__init__(entry.name, config=config)
        self.host = entry.name
        if entry.ssh is not None:
            self.user, self.port = entry.ssh.user or self.user, entry.ssh.port or self.port
        self._set(_entry=entry, _plan=plan, _shared=shared, _background=background)

    def derive_shorthand(self, host_string: str) -> dict[str, Any]:
        """A name of the inventory is not taken apart, as Fabric does with `user@host:port`."""
        return {"user": None, "host": host_string, "port": None}

    @property
    def name(self) -> str:
        """The host's name in the inventory."""
        return str(self._entry.name)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._shared.open_agent(self._entry) is not None

    def open(self) -> None:
        """Connect now, and not when something is first asked of the host."""
        self.agent()

    def close(self) -> None:
        """Nothing to do: the connection is closed when the task has ended on all hosts."""

    def agent(self) -> Agent:
        """The host's agent, connected to."""
        agent: Agent = self.do(self._shared.agent(self._entry, self._plan.environ))
        return agent

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for something that its agent does."""
        return self._background.do(work)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have its agent do something, without waiting for it."""
        self._background.begin(work)

    def _remote_runner(self) -> Runner:
        """What `run` and `sudo` use; parameters and result are Fabric's, a pty is not offered."""
        return AgentRunner(self)

    def put(
        self, local: str | Path | IO[Any], remote: str | None = None, preserve_mode: bool = True
    ) -> TransferResult | None:
        """Copy one file (a path, or an open file of bytes or text) to the host; it is there whole, or as it was before.

        `remote` is a path there, relative to the home directory; without it, or where it is a directory, the file
        keeps its name.
        """
        if self.config.run.dry:
            return None
        return put_file(self, local, remote, preserve_mode=preserve_mode)

    def get(
        self, remote: str, local: str | Path | IO[Any] | None = None, preserve_mode: bool = True
    ) -> TransferResult | None:
        """Copy one file from the host to a path here (default: its own name, here) or into an open file.

        In a path `{host}`, `{user}`, `{port}`, `{dirname}` and `{basename}` are filled in, as Fabric does.
        """
        if self.config.run.dry:
            return None
        return get_file(self, remote, local, preserve_mode=preserve_mode)

    def shell(self, **kwargs: Any) -> NoReturn:
        self._refuse("shell", f"`ssh {self.name}` gives one")

    def sftp(self) -> NoReturn:
        self._refuse("sftp", "put and get copy files")

    def create_session(self) -> NoReturn:
        self._refuse("create_session", "run runs a command")

    def forward_local(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("forward_local", "inventory.yaml declares forwards, and fab run opens them")

    def forward_remote(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("forward_remote", "inventory.yaml declares forwards, and fab run opens them")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise Failed(f"{self.name}: a connection through the host's agent has no {what}; {instead}")


def on_each_connection(
    config: invoke.Config, patterns: Sequence[str], body: Callable[[AgentConnection], object]
) -> None:
    """Call `body` with a connection to each host that the patterns (names, globs, @labels) select, all at once.

    Raises what it raises for a single host; else `Failed`, when all have ended.
    """
    plan = Plan.here()
    entries = plan.select(patterns)
    with ThreadPoolExecutor(len(entries)) as pool, Background("connections") as background:
        shared = Shared(plan.controller)
        connections = [AgentConnection(entry, plan, shared, background, config.clone()) for entry in entries]
        try:
            if len(connections) == 1:
                body(connections[0])  # in this thread, where Ctrl-C is seen and questions can be asked
                return
            for connection in connections:
                connection.config.run.in_stream = False  # one input cannot be read by several at once
            background.do(on_each(connections, lambda connection: _in_thread(pool, body, connection)))
        finally:
            background.do(shared.close())


async def _in_thread(
    pool: ThreadPoolExecutor, body: Callable[[AgentConnection], object], connection: AgentConnection
) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, body, connection)
