"""The plan one stands in: its inventory and manifest, and this machine's own directories."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.controller import Controller
from remote_runner.host import Host
from remote_runner.hosts import open_host
from remote_runner.inventory.inventory import HostEntry, Inventory
from tasks.say import keep_secret
from tasks.task import Failed

if TYPE_CHECKING:
    from testground.manifest import Manifest


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
        keep_secret(inventory.secrets(self.environ))
        return inventory

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

    def host(self, entry: HostEntry) -> Host:
        """The door to a host; a context manager."""
        return open_host(entry, self.controller, self.environ)
