"""The plan one stands in: its inventory and manifest, this machine's directories, and the loop that tasks run in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from remote_runner.controller import Controller
from remote_runner.descriptors import raise_limit
from remote_runner.inventory.inventory import HostEntry, Inventory
from tasks.say import keep_secret, say
from tasks.task import Failed

if TYPE_CHECKING:
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.sources.source import Listing
    from testground.manifest import Manifest

_R = TypeVar("_R")


@dataclass(frozen=True)
class Plan:
    """A plan's directory, and the environment of the `fab` that stands in it."""

    directory: Path
    environ: Mapping[str, str]

    @classmethod
    def here(cls) -> Plan:
        """The plan is the directory one stands in."""
        return cls(Path.cwd(), dict(os.environ))

    @cached_property
    def controller(self) -> Controller:
        return Controller.from_environ(self.environ)

    @cached_property
    def inventory(self) -> Inventory:
        inventory = Inventory.load(self.directory, cache=self.controller.cache)
        if inventory.sources:
            inventory = inventory.with_hosts(self.listings, cache=self.controller.cache)
        keep_secret(inventory.secrets(self.environ))
        for entry in inventory.hosts:
            if entry.ssh is not None and (missing := entry.ssh.missing_identity_file()) is not None:
                say(f"warning: {entry.name}: ssh.identity_file {missing} is not there; ssh goes on without it")
        return inventory

    @cached_property
    def listings(self) -> list[Listing]:
        """What each source of `hosts_from` says now."""
        from remote_runner.inventory.sources.program import Asking
        from remote_runner.inventory.sources.reading import read_source

        inventory = Inventory.load(self.directory, cache=self.controller.cache)
        asking = Asking(self.directory, self.controller, self.environ, inventory.source_s)
        try:
            return [read_source(source, asking) for source in inventory.sources]
        except KeyboardInterrupt:
            raise Failed("ended here by Ctrl-C", 128 + signal.SIGINT) from None

    @cached_property
    def manifest(self) -> Manifest:
        from testground.manifest import Manifest

        return Manifest.load(self.directory / "manifest.toml")

    def select(self, patterns: Sequence[str] | None) -> tuple[HostEntry, ...]:
        """The hosts that the patterns mean; `Failed` where there are none."""
        if not patterns:
            names = ", ".join(host.name for host in self.inventory.hosts)
            raise Failed(f"name a host: --host NAME, a glob or @label (the inventory has {names})")
        return self.inventory.select(patterns)

    def run(self, work: Coroutine[Any, Any, _R]) -> _R:
        """Do a task's work in an event loop; what it returns. Ctrl-C cancels it, and `fab` then ends in a sentence."""
        raise_limit()
        with asyncio.Runner() as runner:
            try:
                return runner.run(work)
            except KeyboardInterrupt:
                raise Failed("ended here by Ctrl-C", 128 + signal.SIGINT) from None

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Shared]:
        """What the steps of a task share: a connection to each host, builds, pushes. Closed at the end."""
        from remote_runner.instance.shared import Shared
        from tasks.view.display import DISPLAY

        async with Shared(self.controller, DISPLAY.tell) as shared:
            yield shared
