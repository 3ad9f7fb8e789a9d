"""The errors of `remote_runner`: a class for each kind that something handles in a way of its own.

    RemoteRunnerError
    ├── DeadlineError           a step took longer than it may
    ├── LocalProgramError       a program on this machine could not be started or failed
    ├── RunEnvironmentError     a variable that the run environment sets cannot be used
    ├── DemoServerError         the embedded ssh server of the demo did not come up
    ├── ControllerError         a directory or lock on this machine cannot be used
    ├── RunNotFoundError        no run that was recorded here is meant by it
    ├── RunRecordError          a run's record here cannot be read
    ├── PlanImportError         a plan cannot be put into Testground's home
    ├── InventoryError          a mistake in the inventory
    ├── SourceError             hosts from elsewhere cannot be read
    ├── HostNameError           not a valid ssh host name
    ├── UnknownSystemError      an unknown processor or operating system
    ├── NoBuilderError          nothing says how the application is built
    ├── EvaluationFailedError   Nix cannot say what the application is
    ├── ArtifactError           not a valid artifact
    └── HostError               an error on one host
        ├── ArtifactMissingError    it does not have the artifact
        ├── OutputsError            an instance's outputs were not transferred completely
        ├── PushFailedError         an artifact was not transferred completely
        │   ├── NotTrustedError         its Nix takes no unsigned path from this user
        │   └── FarBuildFailedError     it could not build the artifact itself
        ├── NoFarDirectoryError     no directory on it will do
        ├── FarShellError           something other than our script answered
        ├── HostLostError           the connection ended while it was needed
        ├── HostUnresolvedError     its name does not resolve
        ├── HostUnreachableError    nothing answers at its address
        ├── HostRefusedError        it answers, but no ssh server listens
        ├── HostKeyUnknownError     its host key is not known yet
        ├── HostKeyChangedError     its host key is another than the known one
        ├── HandshakeDroppedError   its sshd went on dropping new connections
        ├── SshFailedError          ssh ended for another reason
        └── PortTakenError          a fixed port is in use by another program

What nobody tells apart is raised as the nearest of these, with the words that say what it is (tests/test_house.py).
The wording stands in `__str__`; what a program needs stands in attributes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from remote_runner.typed import as_typed


def _quoted(said: str, most: int = 10) -> str:
    """The last lines that somebody said, below a message."""
    return "".join(f"\n  | {line}" for line in said.strip().splitlines()[-most:])


def did_you_mean(nearest: Sequence[str]) -> str:
    """What a message says of names that may be meant."""
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


class RemoteRunnerError(Exception):
    """Root of everything `remote_runner` raises on purpose.

    `next_step` tells the user what to do about it ("" if there is nothing to do).
    """

    next_step: str = ""

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        if next_step is not None:
            self.next_step = next_step

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  next: {as_typed(self.next_step)}" if self.next_step else message


class DeadlineError(RemoteRunnerError):
    """A step did not end within its time."""

    next_step = "see what keeps it, or give it longer with `timeouts` in inventory.yaml"

    def __init__(self, what: str, seconds: float, *, next_step: str | None = None) -> None:
        super().__init__(f"{what} did not end within {round(seconds, 2):g} s", next_step=next_step)
        self.seconds = seconds


class LocalProgramError(RemoteRunnerError):
    """A program on this machine could not be started, or ended with a status other than 0."""

    def __init__(self, argv: Sequence[str], reason: str, *, stderr: str = "", next_step: str | None = None) -> None:
        super().__init__(f"{argv[0]}: {reason}{_quoted(stderr)}", next_step=next_step)


class RunEnvironmentError(RemoteRunnerError):
    """A variable of the run environment holds something that cannot be used."""

    next_step = "correct it where it is set; Testground and `fab local.single` set it for their instances"

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(f"environment variable {name} is {found!r}; expected {expected}")
        self.name = name
        self.expected = expected


class ControllerError(RemoteRunnerError):
    """A directory or lock on this machine cannot be used."""


def no_room_here(error: OSError) -> ControllerError | None:
    """What the system refused in these words, if it is that this machine's disk is full, over a quota, or read-only."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    where = error.filename2 or error.filename
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    return ControllerError(
        f"{where or 'a file'} cannot be written on this machine: {error.strerror}",
        next_step="make room or access there (fab clean removes what is not needed any more), and run it again",
    )


class RunNotFoundError(RemoteRunnerError):
    """No run of that name was recorded on this machine, or more than one is meant."""


class RunRecordError(RemoteRunnerError):
    """A run's record on this machine, or where such are kept (`run` is ""), cannot be read; `path` is which."""

    def __init__(self, path: Path, why: str, *, run: str = "") -> None:
        again = f"fab runs.remove {run} removes it with all outputs" if run else "its runs are listed again then"
        super().__init__(f"{path}: cannot be read: {why}", next_step=f"mend it; {again}")
        self.path = path
        self.run = run


class PlanImportError(RemoteRunnerError):
    """A plan cannot be put into Testground's home."""


class HostError(RemoteRunnerError):
    """An error on one host; `host` is its inventory name."""

    def __init__(self, host: str, message: str, *, stderr: str = "", next_step: str | None = None) -> None:
        super().__init__(f"{host}: {message}{_quoted(stderr)}", next_step=next_step)
        self.host = host


class HostLostError(HostError):
    """The connection to the host ended while it was needed."""


class HostNameError(RemoteRunnerError):
    """Not a valid name or address of an ssh host; `value` is what was found."""

    next_step = "give it a name that `ssh NAME` takes"

    def __init__(self, value: str, reason: str) -> None:
        super().__init__(f"{value!r}: {reason}")
        self.reason = reason


class UnknownSystemError(RemoteRunnerError):
    """An unknown processor or operating system; `nearest` are similar names."""

    def __init__(self, found: str, nearest: Sequence[str]) -> None:
        super().__init__(
            f"{found!r} is not a known system (like x86_64-linux or aarch64-darwin){did_you_mean(nearest)}"
        )
        self.found = found
        self.nearest = tuple(nearest)


class InventoryError(RemoteRunnerError):
    """A mistake in the inventory; `key` is the path of the key (`hosts.dex.ssh.port`)."""

    next_step = "correct that line; docs/inventory.md has the table of all keys"

    def __init__(
        self,
        file: str,
        line: int | None,
        key: str,
        *,
        found: str = "",
        expected: str = "",
        nearest: Sequence[str] = (),
        column: int | None = None,
        excerpt: str = "",
        next_step: str | None = None,
    ) -> None:
        where = f"{file}:{line}:{column}" if line and column else f"{file}:{line}" if line else file
        parts = [
            part for part in (f"found {found}" if found else "", f"expected {expected}" if expected else "") if part
        ]
        message = ": ".join(part for part in (where, key, ", ".join(parts)) if part)
        super().__init__(message + did_you_mean(nearest) + excerpt, next_step=next_step)
        self.line = line
        self.key = key
        self.found = found
        self.expected = expected
        self.nearest = tuple(nearest)


class SourceError(RemoteRunnerError):
    """An entry of `hosts_from` gives no hosts; `source` are its words."""

    def __init__(self, source: str, reason: str, *, said: str = "", next_step: str) -> None:
        super().__init__(f"hosts_from: {source}: {reason}{_quoted(said)}", next_step=next_step)


class DemoServerError(RemoteRunnerError):
    """The embedded ssh server of the demo did not come up."""

    def __init__(self, message: str, *, stderr: str = "", next_step: str | None = None) -> None:
        super().__init__(f"{message}{_quoted(stderr)}", next_step=next_step)


class HostUnresolvedError(HostError):
    """The host's name does not resolve."""


class HostUnreachableError(HostError):
    """Nothing answers at the host's address."""


class HostRefusedError(HostError):
    """The host answers, but nothing listens at its ssh port."""


class HostKeyUnknownError(HostError):
    """The host's key is not in the user's known hosts."""


class HostKeyChangedError(HostError):
    """The host's key is another than the one in the user's known hosts."""


class HandshakeDroppedError(HostError):
    """The host's sshd dropped connections before the login, again and again."""


class SshFailedError(HostError):
    """ssh ended for a reason of its own; its words stand in the message."""


class PortTakenError(HostError):
    """A fixed port, there or here, is in use by another program."""


class NoBuilderError(RemoteRunnerError):
    """Nothing says how the application is built."""


def build_failed(
    app: str, system: str, reason: str, *, log: str = "", said: str = "", next_step: str = ""
) -> RemoteRunnerError:
    """The error for a build that failed or made no artifact; `log` is the file with its output."""
    where = f"\n  log: {log}" if log else ""
    return RemoteRunnerError(
        f"build of {app} for {system}: {reason}{_quoted(said, 20)}{where}",
        next_step=next_step or "`fab build` does the same by hand",
    )


def no_nix(what: str) -> RemoteRunnerError:
    """The error for something that needs Nix, where there is none on this machine."""
    return RemoteRunnerError(
        f"{what} needs Nix, and neither PATH nor one of the usual places on this machine has it",
        next_step="install Nix (Debian has it as nix-bin), or set app.builder: command and app.command in "
        "inventory.yaml",
    )


class EvaluationFailedError(RemoteRunnerError):
    """Nix cannot say what a flake's package is; `log` is the file with everything it said."""

    next_step = "`nix build` of the same says it as well"

    def __init__(self, package: str, reason: str, *, log: str = "", said: str = "", next_step: str = "") -> None:
        where = f"\n  log: {log}" if log else ""
        super().__init__(f"{package}: {reason}{_quoted(said, 20)}{where}", next_step=next_step or None)
        self.log = log


class ArtifactError(RemoteRunnerError):
    """Not a valid artifact: missing, empty, or with something in it that cannot be sent."""


class PushFailedError(HostError):
    """An artifact was not transferred completely; nothing of it is used."""

    next_step = "see what the host says above, and push again"


class NotTrustedError(PushFailedError):
    """The Nix daemon on the host takes unsigned paths only from trusted users, and this user is not one."""


class FarBuildFailedError(PushFailedError):
    """The host could not build the artifact from its derivation."""


class NoFarDirectoryError(HostError):
    """No directory on the host will do for runs and artifacts."""


class FarShellError(HostError):
    """The host ran something else than the command it was given, or its sh failed early."""


class ArtifactMissingError(HostError):
    """The host does not have the artifact (any more); pushed again, the run works."""

    def __init__(self, host: str, artifact: str, *, stderr: str = "") -> None:
        super().__init__(host, f"artifact {artifact} is not there", stderr=stderr, next_step="push it again")
        self.artifact = artifact


class OutputsError(HostError):
    """An instance's outputs did not come over whole; what came is kept, and the host keeps its copy."""

    def of_run(self, run_id: str) -> Self:
        """The same with this run in the command that it suggests."""
        self.next_step = self.next_step.replace("--run ID", f"--run {run_id}")
        return self
