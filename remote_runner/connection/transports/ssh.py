"""The user's own ssh as the transport to a host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.connection.transports.openssh import (
    Account,
    SshConfig,
    attach_argv,
    config_argv,
    explain_failure,
    find_ssh,
    is_address,
    peer_address,
    ssh_environment,
)
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ControllerError,
    DeadlineError,
    HandshakeDroppedError,
    HostError,
    HostUnresolvedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.machine.process import run

if TYPE_CHECKING:
    pass
from remote_runner.connection.transports.pipes import Pipes

_WORDS_BYTES = 16 << 10
_MASTER_S = 10.0  # a master answers from memory; one that does not is stopped or stuck
_CONFIG_S = 5.0
_MOST_LOG_BYTES = 1 << 20


class SshTransport:
    """The user's own ssh with the user's configuration.

    directory: where ssh's log is written (the controller's runtime directory); it is removed again at once.
    login_socket: where `fab hosts.login` opens a master.
    environ: of the child; whoever holds the transport may exchange it (a younger agent's socket).
    nearest: names that may be meant where this one does not resolve.
    """

    is_local = False

    def __init__(
        self,
        target: SshTarget,
        directory: Path,
        environ: Mapping[str, str],
        *,
        tolerate_s: float = 60.0,
        connect_s: float = 30.0,
        login_socket: Path | None = None,
        nearest: Sequence[str] = (),
    ) -> None:
        self.name = target.name
        self.environ: Mapping[str, str] = dict(environ)
        self._target = target
        self._directory = directory
        self._tolerate_s = tolerate_s
        self._connect_s = connect_s
        self._login_socket = login_socket
        self._nearest = tuple(nearest)
        self._config: SshConfig | None = None
        self._master: Path | None = None  # that the last process was to use
        self._refused: set[tuple[int, int]] = set()  # masters that did not serve
        self._silent_proxies = 0
        self._log = -1
        self._log_path = directory

    async def start(self, script: bytes, *, first: bool, deadline: Deadline) -> Pipes:
        """See `Transport.start`."""
        environ = ssh_environment(self.environ, Account.here(self.environ))
        ssh = find_ssh(environ)
        if self._config is None:
            self._config = await self._ask_config(ssh, environ, deadline)
        self._master = self._find_master(first)
        self._open_log()
        argv = attach_argv(
            ssh,
            self._target,
            self._config,
            script,
            log=self._log_path,
            tolerate_s=self._tolerate_s,
            # A lost SYN is repeated after 1, 3, 7 s …: a slow start is no reason to wait for the next.
            connect_s=self._connect_s if first else min(self._connect_s, 20.0),
            control_path="none" if self._master is None else str(self._master),
        )
        if self._silent_proxies:
            argv = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *argv]
        return Pipes(argv, environ, answer_s=None if self._master is None else _MASTER_S)

    async def _ask_config(self, ssh: str, environ: Mapping[str, str], deadline: Deadline) -> SshConfig:
        argv = config_argv(ssh, self._target)
        soon = Deadline.after(min(_CONFIG_S, deadline.remaining_s))
        try:
            finished = await asyncio.to_thread(run, argv, deadline=soon, environ=environ)
        except DeadlineError:  # a `Match exec` that hangs; ssh itself will hang at it as well
            return SshConfig({})
        return SshConfig.parse(finished.stdout.decode(errors="replace") if finished.status == 0 else "")

    def _find_master(self, first: bool) -> Path | None:
        """A master that is there and has not failed: a reattachment takes only one that was opened since."""
        assert self._config is not None
        for path in (self._config.control_path, self._login_socket):
            if path is None:
                continue
            with suppress(OSError):
                found = path.stat()
                mark = (found.st_ino, found.st_ctime_ns)
                is_fresh = mark not in self._refused
                self._refused.add(mark)  # one attempt each
                if is_fresh and (first or path == self._login_socket):
                    return path
        return None

    def _open_log(self) -> None:
        self._close_log()
        self._log_path = self._directory / f"ssh-{os.getpid()}-{os.urandom(4).hex()}.log"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it goes when its user logs out
            self._log = os.open(self._log_path, flags, 0o600)
        except OSError as error:
            raise ControllerError(
                f"{self._log_path}: cannot be written: {error.strerror}",
                next_step="make room there, or name another directory with REMOTE_RUNNER_RUNTIME_DIR",
            ) from error

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
            self._log_path.unlink(missing_ok=True)

    def _read_log(self) -> str:
        if self._log < 0:
            return ""
        size = os.fstat(self._log).st_size
        said = os.pread(self._log, _WORDS_BYTES, 0)
        if size > _WORDS_BYTES:
            said += b"\n" + os.pread(self._log, _WORDS_BYTES, max(_WORDS_BYTES, size - _WORDS_BYTES))
        return said.decode(errors="replace")

    def explain(self, status: int | None, said: str) -> HostError:
        """See `Transport.explain`."""
        log = self._read_log()
        self._close_log()
        if self._master is not None and (status is None or not self.is_from_host(status)):
            return HandshakeDroppedError(
                self.name,
                f"its control master does not serve: {self._master}",
                stderr=log,
                next_step="end that ssh process",
            )
        config = self._config or SshConfig({})
        has_agent = "SSH_AUTH_SOCK" in self.environ
        error = explain_failure(self._target, config, status, log, said, has_agent=has_agent)
        if isinstance(error, SshFailedError) and config.has_proxy and not said.strip() and self._silent_proxies < 2:
            # ssh ends its proxy with SIGHUP as soon as that closes its stdout, which may be before it says why. The
            # next attempt has it ignore that.
            self._silent_proxies += 1
            return HandshakeDroppedError(
                self.name, "the connection through a proxy failed without a message", stderr=log
            )
        if isinstance(error, HostUnresolvedError) and self._nearest:
            error.next_step = f"did you mean {' or '.join(self._nearest)}? Else {error.next_step}"
        return error

    def is_from_host(self, status: int | None) -> bool:
        """ssh says 255 for all faults of its own."""
        return status is not None and 0 <= status < 255

    def tidy(self) -> None:
        """A host that makes ssh complain without end fills no disk here."""
        if self._log >= 0 and os.fstat(self._log).st_size > _MOST_LOG_BYTES:
            os.ftruncate(self._log, 0)  # ssh appends

    def address(self) -> str:
        self._log_path.unlink(missing_ok=True)  # ssh has it open by now, and so have we: nothing of it stays behind
        found = peer_address(self._read_log())
        return found if is_address(found) else ""

    def last_words(self) -> str:
        log = self._read_log()
        self._close_log()
        lines = [line for line in log.splitlines() if not line.startswith(("Authenticated", "Transf", "Bytes"))]
        return "".join(c for c in lines[-1][:200] if c.isprintable()) if lines else ""

    async def why_ended_there(self) -> str:
        return ""
