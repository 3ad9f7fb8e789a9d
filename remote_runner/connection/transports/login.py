"""An ssh control master that the user opens at the terminal, where ssh may ask; later connections go through it first.

It is the master that the user's configuration names (ControlPath), or else one of ours in the runtime directory.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from remote_runner.connection.transports.openssh import (
    Account,
    SshConfig,
    config_argv,
    find_ssh,
    login_argv,
    ssh_environment,
)
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import ControllerError, SshFailedError
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.machine.process import run, run_at_terminal

_PERSIST_S = 4 * 3600  # after its last use: typing a code once lasts half a working day
_CONFIG_S = 10.0
_SOCKET_PATH_BYTES = 104 - 1 - 17  # sun_path of macOS, its NUL, and the ".XXXXXXXXXXXXXXXX" that ssh binds first


def login_socket(target: SshTarget, controller: Controller, environ: Mapping[str, str]) -> Path:
    """Where a login's master listens, or a link to where it does; the same for all names of a host."""
    text = "\0".join([*config_argv("ssh", target), Account.here(environ).home])
    return controller.runtime / f"login-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def is_listening(path: Path) -> bool:
    """Whether a master listens there."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True


def open_login(target: SshTarget, controller: Controller, environ: Mapping[str, str]) -> bool:
    """Open it at this process's terminal; `False` where it was open already.

    Raises `SshFailedError` when ssh did not open it (it has told the terminal why), `LocalProgramError`,
    `ControllerError`.
    """
    given = ssh_environment(environ, Account.here(environ))
    ssh = find_ssh(given)
    asked = run(config_argv(ssh, target), deadline=Deadline.after(_CONFIG_S), environ=given)
    config = SshConfig.parse(asked.stdout.decode(errors="replace"))
    ours = login_socket(target, controller, environ)
    path = config.control_path or ours
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise ControllerError(
            f"{path}: too long for a socket ({_SOCKET_PATH_BYTES} bytes at most)",
            next_step="name a shorter directory with REMOTE_RUNNER_RUNTIME_DIR, or in ControlPath",
        )
    if is_listening(path):
        return False
    for left in {path, ours}:  # by a crash
        left.unlink(missing_ok=True)
    if path != ours:
        ours.symlink_to(path)
    status = run_at_terminal(login_argv(ssh, target, path, persist_s=_persist_s(config)), given)
    if status in (-signal.SIGINT, 128 + signal.SIGINT):
        raise SshFailedError(target.name, "the login was interrupted", next_step="start it again")
    if status != 0:
        raise SshFailedError(target.name, f"ssh ended with status {status}", next_step="see what it says above")
    return True


def _persist_s(config: SshConfig) -> int:
    """As the user's configuration says it, where that has a time."""
    with suppress(ValueError):
        return int(config.values.get("controlpersist", "")) or _PERSIST_S
    return _PERSIST_S
