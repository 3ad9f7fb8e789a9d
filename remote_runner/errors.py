"""The errors of `remote_runner`, one leaf per kind of fault.

    RemoteRunnerError
    ├── DeadlineError           a step took longer than it may
    ├── LocalProgramError       a program on this machine could not be started or failed
    ├── RunEnvironmentError     a variable that the run environment sets cannot be used
    ├── DemoServerError         the embedded ssh server of the demo did not come up
    ├── JobError                a job cannot be represented in a request
    ├── ControllerError         a directory or lock on this machine cannot be used
    │   └── NoRoomHereError         its disk is full or read-only
    ├── RunNotFoundError        no run that was recorded here is meant by it
    ├── RunRecordError          a run's record here cannot be read
    ├── PlanImportError         a plan cannot be put into Testground's home
    ├── InventoryError          a mistake in the inventory
    ├── SourceError             hosts from elsewhere cannot be read
    ├── HostNameError           not a valid ssh host name
    ├── UnknownHostError        matches no host of the inventory
    ├── UnknownSystemError      an unknown processor or operating system
    ├── PlacementError          an instance cannot be given a host
    ├── NoBuilderError          nothing says how the application is built
    ├── NoNixError              there is no Nix on this machine
    ├── EvaluationFailedError   Nix cannot say what the application is
    │   └── NoPackageError          the flake has no such package
    ├── NoBuildMachineError     no available machine can build it
    ├── BuildFailedError        a build failed or made no artifact
    ├── ArtifactError           not a valid artifact
    ├── ServeProtocolError      an unexpected answer of `nix-store --serve`
    └── HostError               an error on one host
        ├── InstanceExistsError     a run of that name is on it already
        ├── ArtifactMissingError    it does not have the artifact
        ├── NoRoomError             a run's directory cannot be made or written
        ├── ProgramUnusableError    the application cannot be started there
        ├── OutputsError            an instance's outputs were not transferred completely
        │   ├── UnsafeOutputsError      an entry would leave the outputs directory
        │   ├── DamagedOutputsError     the stream is not a tar archive, or is cut off
        │   ├── OutputsLimitError       they are larger than the inventory allows
        │   └── UnwritableOutputsError  this machine could not write an entry
        ├── UnknownRunError         it has no run of that name
        ├── WrongSystemError        it is another system than the artifact is for
        ├── PushFailedError         an artifact was not transferred completely
        │   ├── NotTrustedError         its Nix takes no unsigned path from this user
        │   ├── FarBuildFailedError     it could not build the artifact itself
        │   ├── FarDiskFullError        there is no room for it
        │   └── FarReadOnlyError        its file system is read-only
        ├── NamespaceRefusedError   its kernel allows no user namespaces
        ├── NoFarStoreError         it has no Nix store to which the user may add
        ├── NoFarDirectoryError     no directory on it will do
        ├── FarShellError           something other than our script answered
        ├── SessionRefusedError     the host's sshd (or the kernel, here) did not start the command
        ├── HostLostError           the connection ended while it was needed
        │   └── SupervisorLostError     … in the middle of a run
        ├── HostUnresolvedError     its name does not resolve
        ├── HostUnreachableError    nothing answers at its address
        ├── HostRefusedError        it answers, but no ssh server listens
        ├── HostKeyUnknownError     its host key is not known yet
        ├── HostKeyChangedError     its host key is another than the known one
        ├── LoginDeniedError        it refused every key that was offered
        ├── HandshakeDroppedError   its sshd went on dropping new connections
        ├── SshFailedError          ssh ended for another reason
        └── PortTakenError          a fixed port is in use by another program

The wording stands in `__str__`; what a program needs stands in attributes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from remote_runner.sizes import count
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


class NoRoomHereError(ControllerError):
    """This machine's disk is full, over a quota, or read-only."""

    next_step = "make room or access there (fab clean removes what is not needed any more), and run it again"

    @classmethod
    def of(cls, error: OSError) -> Self | None:
        """What the system refused in these words, if that is what it was."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return None
        where = error.filename2 or error.filename
        if isinstance(where, bytes):
            where = os.fsdecode(where)
        return cls(f"{where or 'a file'} cannot be written on this machine: {error.strerror}")


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


class SessionRefusedError(HostError):
    """The host did not start the command."""


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


class UnknownHostError(RemoteRunnerError):
    """A pattern that no host of the inventory matches; `nearest` are hosts that may be meant."""

    next_step = "`fab hosts` lists the inventory's hosts and labels"

    def __init__(self, pattern: str, reason: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(f"{pattern!r}: {reason}{did_you_mean(nearest)}")


class PlacementError(RemoteRunnerError):
    """An instance cannot be given a host."""


class DemoServerError(RemoteRunnerError):
    """The embedded ssh server of the demo did not come up."""

    def __init__(self, message: str, *, stderr: str = "", next_step: str | None = None) -> None:
        super().__init__(f"{message}{_quoted(stderr)}", next_step=next_step)


class ServeProtocolError(RemoteRunnerError):
    """An answer of `nix-store --serve` that its protocol does not allow; `found` is that answer."""

    def __init__(self, found: str) -> None:
        super().__init__(f"expected an answer of `nix-store --serve`, found {found}")


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


class LoginDeniedError(HostError):
    """The host refused every key; `methods` are the ways of authentication it offers."""

    def __init__(self, host: str, methods: Sequence[str], *, stderr: str, next_step: str) -> None:
        offered = f" (it offers: {', '.join(methods)})" if methods else ""
        super().__init__(host, f"the host refused the login{offered}", stderr=stderr, next_step=next_step)
        self.methods = tuple(methods)


class HandshakeDroppedError(HostError):
    """The host's sshd dropped connections before the login, again and again."""


class SshFailedError(HostError):
    """ssh ended for a reason of its own; its words stand in the message."""


class PortTakenError(HostError):
    """A fixed port, there or here, is in use by another program."""


class NoBuilderError(RemoteRunnerError):
    """Nothing says how the application is built."""


class BuildFailedError(RemoteRunnerError):
    """A build failed or made no artifact; `log` is the file with its output."""

    next_step = "`fab build` does the same by hand"

    def __init__(
        self, app: str, system: str, reason: str, *, log: str = "", said: str = "", next_step: str = ""
    ) -> None:
        where = f"\n  log: {log}" if log else ""
        super().__init__(
            f"build of {app} for {system}: {reason}{_quoted(said, 20)}{where}", next_step=next_step or None
        )
        self.log = log


class NoNixError(RemoteRunnerError):
    """There is no Nix on this machine, and something needs it."""

    next_step = "install Nix (Debian has it as nix-bin), or set app.builder: command and app.command in inventory.yaml"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs Nix, and neither PATH nor one of the usual places on this machine has it")


class EvaluationFailedError(RemoteRunnerError):
    """Nix cannot say what a flake's package is; `log` is the file with everything it said."""

    next_step = "`nix build` of the same says it as well"

    def __init__(self, package: str, reason: str, *, log: str = "", said: str = "", next_step: str = "") -> None:
        where = f"\n  log: {log}" if log else ""
        super().__init__(f"{package}: {reason}{_quoted(said, 20)}{where}", next_step=next_step or None)
        self.log = log


class NoPackageError(EvaluationFailedError):
    """The flake has no package of that name for that system."""


class NoBuildMachineError(RemoteRunnerError):
    """Neither this machine, nor its remote builders, nor the target builds an application for a system."""

    def __init__(self, app: str, system: str, *, here: str, target: str, next_step: str) -> None:
        super().__init__(
            f"{app} for {system} can be built nowhere:\n  here: {here}\n  on the target: {target}", next_step=next_step
        )


class ArtifactError(RemoteRunnerError):
    """Not a valid artifact: missing, empty, or with something in it that cannot be sent."""


class PushFailedError(HostError):
    """An artifact was not transferred completely; nothing of it is used."""

    next_step = "see what the host says above, and push again"


class NotTrustedError(PushFailedError):
    """The Nix daemon on the host takes unsigned paths only from trusted users, and this user is not one."""


class FarBuildFailedError(PushFailedError):
    """The host could not build the artifact from its derivation."""


class FarDiskFullError(PushFailedError):
    """There is no room for the artifact on the host."""


class FarReadOnlyError(PushFailedError):
    """The host's file system is read-only."""


class WrongSystemError(HostError):
    """The host is another system (`found`) than the artifact is for (`wanted`); nothing was copied."""

    def __init__(self, host: str, why: str, wanted: str, found: str, *, next_step: str) -> None:
        super().__init__(host, f"{why}, and the host says that it is {found}", next_step=next_step)


class NamespaceRefusedError(HostError):
    """The host shows a user no store of their own: its kernel gives out no namespaces, or the tools are missing."""

    def __init__(self, host: str, words: str) -> None:
        super().__init__(
            host,
            "a store of the user's own cannot be shown at /nix/store there",
            stderr=words,
            next_step="let the kernel there give users namespaces (user.max_user_namespaces and the like, see "
            f"`sysctl -a`), or install Nix on {host} and say `store: nix`, or build without Nix: `builder: command` "
            "(inventory.yaml)",
        )


class NoFarStoreError(HostError):
    """The host has no Nix store to which the user may add."""


class NoFarDirectoryError(HostError):
    """No directory on the host will do for runs and artifacts."""


class FarShellError(HostError):
    """The host ran something else than the command it was given, or its sh failed early."""


class JobError(RemoteRunnerError):
    """A run that cannot be handed over: an identifier, an argument or a limit that no host takes."""


class InstanceExistsError(HostError):
    """A run of that name is on the host already, alive or left behind (`place`)."""

    def __init__(self, host: str, instance_id: str, place: str) -> None:
        super().__init__(
            host,
            f"{instance_id} is there already, in {place}",
            next_step=f"fab clean -H {host} --run {instance_id} removes it, or choose another name for the run",
        )


class ArtifactMissingError(HostError):
    """The host does not have the artifact (any more); pushed again, the run works."""

    def __init__(self, host: str, artifact: str, *, stderr: str = "") -> None:
        super().__init__(host, f"artifact {artifact} is not there", stderr=stderr, next_step="push it again")
        self.artifact = artifact


class NoRoomError(HostError):
    """A run's directory could not be made on the host, or nothing can be written there."""


class ProgramUnusableError(HostError):
    """The application cannot be started on the host; `kind` says why, `program` is its path there."""

    def __init__(self, host: str, program: str, kind: str, reason: str, *, next_step: str) -> None:
        super().__init__(host, f"{program}: {reason}", next_step=next_step)
        self.program = program
        self.kind = kind


class SupervisorLostError(HostLostError):
    """The session ended in the middle of a run; the host ends the application, whose outputs were in `place`."""

    def __init__(self, host: str, place: str, reason: str, *, stderr: str = "") -> None:
        of_run = f"-H {host} --run {place.rpartition('/')[2]}"
        super().__init__(
            host,
            f"{reason}; what the application wrote was in {place}",
            stderr=stderr,
            next_step=f"fab fetch {of_run} brings what is there, fab clean {of_run} removes it",
        )


class OutputsError(HostError):
    """An instance's outputs did not come over whole; what came is kept, and the host keeps its copy."""

    def of_run(self, run_id: str) -> Self:
        """The same with this run in the command that it suggests."""
        self.next_step = self.next_step.replace("--run ID", f"--run {run_id}")
        return self


class UnsafeOutputsError(OutputsError):
    """An entry would be written elsewhere than in the outputs directory (`entry`)."""

    def __init__(self, host: str, entry: str, reason: str) -> None:
        super().__init__(
            host,
            f"outputs: {entry!r} {reason}; nothing after it was unpacked",
            next_step="no tar writes such an entry by itself: look at the outputs there, then fab clean",
        )
        self.entry = entry


class DamagedOutputsError(OutputsError):
    """The stream of outputs is not a tar archive, or is cut off; `last_entry` is the last that began well."""

    def __init__(self, host: str, last_entry: str, reason: str) -> None:
        after = f"after {last_entry!r}" if last_entry else "at its beginning"
        super().__init__(
            host,
            f"outputs: the stream is damaged {after}: {reason}",
            next_step="the host keeps them: fab fetch --run ID brings them",
        )


class OutputsLimitError(OutputsError):
    """The outputs are larger than `outputs_limit` (`limit_bytes`); `entry` is the first that was not unpacked."""

    def __init__(self, host: str, entry: str, limit_bytes: int, files: int) -> None:
        super().__init__(
            host,
            f"outputs: with {entry!r} they are more than outputs_limit, {limit_bytes} bytes; "
            f"what came before it is here ({count(files, 'file')})",
            next_step=f"the host keeps all: raise outputs_limit for {host} in inventory.yaml, then fab fetch --run ID",
        )
        self.entry = entry


class UnwritableOutputsError(OutputsError):
    """An entry could not be written on this machine (disk full, no permission); `path` is where."""

    def __init__(self, host: str, path: str, reason: str) -> None:
        super().__init__(
            host,
            f"outputs: {path} cannot be written on this machine: {reason}",
            next_step="make room or access here, then fab fetch --run ID: the host keeps them",
        )
        self.path = path


class UnknownRunError(HostError):
    """The host has no run of that name."""
