"""The address by which the other hosts reach this machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from remote_runner.connection.transports.openssh import Account, SshConfig, config_argv, find_ssh, ssh_environment
from remote_runner.deadline import Deadline
from remote_runner.errors import RemoteRunnerError
from remote_runner.inventory.inventory import HostEntry
from remote_runner.machine.process import run

_ASK_S = 10.0


def own_address(others: Sequence[HostEntry], environ: Mapping[str, str]) -> str:
    """The address that this machine has on its way to the first of the other hosts whose address can be told.

    Nothing is sent: connecting a UDP socket only asks the routing table. 127.0.0.1 where there are no others.
    """
    for entry in others:
        for target in (entry.address, _configured_name(entry, environ)):
            found = _route_to(target) if target else None
            if found is not None:
                return found
    return "127.0.0.1"


def _route_to(target: str) -> str | None:
    try:
        family, kind, _, _, destination = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(destination)
            return str(probe.getsockname()[0])
    except OSError:
        return None  # a name or an address that nothing here leads to: another host may do


def _configured_name(entry: HostEntry, environ: Mapping[str, str]) -> str | None:
    """What the user's ssh configuration has as the host's HostName (`ssh -G`, 10 ms); None where ssh refuses."""
    if entry.by_ssh is None:
        return None
    ssh_environ = ssh_environment(environ, Account.here(environ))
    try:
        argv = config_argv(find_ssh(ssh_environ), entry.by_ssh)
        asked = run(argv, deadline=Deadline.after(_ASK_S), environ=ssh_environ)
    except RemoteRunnerError:
        return None  # the host's own instances say what is wrong with ssh
    return SshConfig.parse(asked.stdout.decode(errors="replace")).values.get("hostname")
