"""The current plan: its inventory and manifest, this machine's directories, and the loop that tasks run in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.command_line.task import Failed
from tasks.say import keep_secret, say

if TYPE_CHECKING:
    from remote_runner.controller import Controller
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.inventory import HostEntry, Inventory
    from remote_runner.inventory.sources.source import Listing
    from testground.manifest import Manifest

_R = TypeVar("_R")
MARKS = ("manifest.toml", "inventory.yaml")
"""A plan has one of these at least."""


@dataclass(frozen=True)
class Plan:
    """A plan's directory, and the environment of the `fab` that stands in it.

    Where there is no plan (`is_plan`), the directory is the one that one stands in, and the inventory the user's own.
    """

    directory: Path
    environ: Mapping[str, str]
    is_plan: bool = True

    @classmethod
    def here(cls) -> Plan:
        """The nearest plan, from the current directory upwards."""
        here = Path.cwd()
        found = next(
            (place for place in (here, *here.parents) if any((place / mark).is_file() for mark in MARKS)), None
        )
        return cls(found or here, dict(os.environ), is_plan=found is not None)

    @property
    def inventory_directory(self) -> Path:
        """Where the inventory lies."""
        from remote_runner.controller import home_directory

        if self.is_plan:
            return self.directory
        home = self.environ.get("HOME") or home_directory(self.environ) or "/"
        return Path(self.environ.get("XDG_CONFIG_HOME") or f"{home}/.config") / "remote-runner"

    def missing(self) -> Failed:
        """The error of a task that needs a plan."""
        return Failed(
            f"there is no plan in {self.directory}, nor in a directory above it\n"
            "  a plan is a directory with manifest.toml (its test cases) and inventory.yaml (application and hosts)\n"
            "  next: fab init sh hello makes one; -C DIR names one that lies elsewhere"
        )

    @cached_property
    def controller(self) -> Controller:
        from remote_runner.controller import Controller

        return Controller.from_environ(self.environ)

    @cached_property
    def inventory(self) -> Inventory:
        from remote_runner.inventory.inventory import Inventory

        inventory = Inventory.load(self.inventory_directory, cache=self.controller.cache)
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
        from remote_runner.inventory.inventory import Inventory
        from remote_runner.inventory.sources.program import Asking
        from remote_runner.inventory.sources.reading import read_source

        inventory = Inventory.load(self.inventory_directory, cache=self.controller.cache)
        asking = Asking(self.inventory_directory, self.controller, self.environ, inventory.source_s)
        return [read_source(source, asking) for source in inventory.sources]

    @cached_property
    def manifest(self) -> Manifest:
        from testground.manifest import Manifest

        if not self.is_plan:
            raise self.missing()
        return Manifest.load(self.directory / "manifest.toml")

    def select(self, patterns: Sequence[str] | None) -> tuple[HostEntry, ...]:
        """The hosts that the patterns mean; `Failed` where there are none."""
        if not patterns:
            names = ", ".join(host.name for host in self.inventory.hosts)
            raise Failed(f"name a host: --host NAME, a glob or @label (the inventory has {names})")
        listed = next((pattern for pattern in patterns if "," in pattern), None)
        if listed:
            each = [name for name in listed.split(",") if name]
            raise Failed(
                f"--host takes one host at a time: {' '.join(f'--host {name}' for name in each)}, or -H {listed}"
            )
        return self.inventory.select(patterns)

    def run(self, work: Coroutine[Any, Any, _R]) -> _R:
        """Do a task's work in an event loop; what it returns. Ctrl-C cancels it and ends the task."""
        from remote_runner.machine.descriptors import raise_limit

        raise_limit()
        with asyncio.Runner() as runner:
            return runner.run(work)

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Shared]:
        """What the steps of a task share: a connection to each host, builds, pushes. Closed at the end."""
        from remote_runner.instance.shared import Shared
        from tasks.view.display import DISPLAY

        async with Shared(self.controller, DISPLAY.tell) as shared:
            yield shared
