"""From an inventory entry to the door of that host."""

from __future__ import annotations

from collections.abc import Mapping

from remote_runner.controller import Controller
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry


def open_host(entry: HostEntry, controller: Controller, environ: Mapping[str, str]) -> Host:
    """This machine, or the host behind ssh; nothing is connected before the first session or forward."""
    if entry.ssh is None:
        from remote_runner.local_host import LocalHost

        return LocalHost(entry.name)
    from remote_runner.masters import SshHost
    from remote_runner.ssh import SshSettings

    return SshHost(
        entry.ssh,
        controller,
        environ=environ,
        connect_s=entry.timeouts.connect_s,
        settings=SshSettings.tolerating(entry.tolerate_s),
        nearest=entry.nearest,
    )
