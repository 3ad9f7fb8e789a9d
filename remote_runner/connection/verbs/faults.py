"""Failures that an agent reports, as our errors.

What a host says is shown as a quotation, and never goes into a command that we suggest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.validation import words
from remote_runner.errors import (
    ArtifactMissingError,
    FarShellError,
    HostError,
    HostLostError,
    OutputsError,
    PortTakenError,
    PushFailedError,
)
from remote_runner.machine.shell_words import needs_shell, shell_line
from remote_runner.sizes import count, listed

if TYPE_CHECKING:
    from remote_runner.connection.verbs.job import Job

# e_machine, bytes 18 and 19 of an ELF header as they stand in a little-endian file.
_MACHINES = {
    "0300": "i686",
    "2800": "armv7l",
    "3e00": "x86_64",
    "b700": "aarch64",
    "f300": "riscv64",
    "1500": "powerpc64le",
}


def fault(host: str, closed: StreamClosed) -> HostError:
    """The error for a request that failed in a way of every verb."""
    said = words(closed.text)
    if closed.kind in ("room", "readonly"):
        return HostError(
            host,
            f"cannot write there: {said}",
            next_step="make room there (fab clean), or name another place with 'directory' in inventory.yaml",
        )
    if closed.kind == "processes":
        return HostError(
            host,
            "no process can be started there",
            stderr=said,
            next_step="see what uses them up there (ulimit -u), or give the host fewer `slots` (inventory.yaml)",
        )
    if closed.kind == "unreadable":
        return HostError(
            host, "not all can be read there", stderr=said, next_step="make it readable there, and do this again"
        )
    if closed.kind == "busy":
        return HostError(host, f"another process does the same there, and went on for too long: {said}")
    if closed.kind == "ended":
        return HostLostError(host, "the agent there ended", stderr=said)
    if not closed.kind:
        return FarShellError(host, "the agent there ended the request without an answer")
    return FarShellError(host, f"the agent there failed: {words(closed.kind)}", stderr=said)


def listen_fault(host: str, port: int, closed: StreamClosed) -> HostError:
    """The error for a port (0: any) on which the host cannot listen."""
    if closed.kind == "taken":
        return PortTakenError(
            host,
            f"port {port} on its loopback is taken by another program",
            next_step=f"find it there with: ss -ltnp 'sport = :{port}'",
        )
    return fault(host, closed)


def run_fault(host: str, job: Job, closed: StreamClosed) -> HostError:
    """The error for a run that failed."""
    if closed.kind == "missing":
        return ArtifactMissingError(host, words(closed.more.get("artifact")), stderr=words(closed.text))
    if closed.kind == "exists":
        return HostError(
            host,
            f"{job.instance_id} is there already, in {words(closed.more.get('directory'))}",
            next_step=f"fab clean -H {host} --run {job.instance_id} removes it, or choose another name for the run",
        )
    if closed.kind == "program":
        return program_error(
            host,
            problem_of(closed.more.get("problem")),
            job.words,
            far_program=words(closed.more.get("program")),
            built=job.artifact is not None,
        )
    if closed.kind in ("room", "readonly"):
        return HostError(
            host,
            f"cannot make a run's directory: {words(closed.text)}",
            next_step="make room there (fab clean), or name another place with 'directory' in inventory.yaml",
        )
    if closed.kind == "terminal":
        return HostError(
            host,
            "programs there cannot be given a terminal",
            stderr=words(closed.text),
            next_step="leave --tty out, or use ssh -t by hand",
        )
    return fault(host, closed)


def command_fault(host: str, program: str, closed: StreamClosed) -> HostError:
    """The error for a program that was not started, or of whose end nothing is known."""
    if closed.kind == "program":
        return program_error(host, problem_of(closed.more.get("problem")), [program], built=False)
    return fault(host, closed)


def file_fault(host: str, path: str, closed: StreamClosed) -> HostError:
    """The error for a file that was not sent or written."""
    if closed.kind in ("unknown", "unreadable", "room", "readonly", "failed"):
        what = {"unknown": "is not there", "unreadable": "cannot be read"}.get(closed.kind, "cannot be written")
        return HostError(host, f"{path} {what}", stderr=words(closed.text))
    return fault(host, closed)


def push_fault(host: str, closed: StreamClosed) -> HostError:
    """The error for an artifact that did not arrive."""
    said = words(closed.text)
    if closed.kind == "namespace":
        return _namespace_refused(host, said)
    if closed.kind == "room":
        return PushFailedError(
            host,
            "there is no room for the artifact",
            stderr=said,
            next_step="raise the quota or make room there, name another place with `directory`, or lower `cache_limit` "
            "(inventory.yaml)",
        )
    if closed.kind == "readonly":
        return PushFailedError(
            host,
            "the file system there is read-only",
            stderr=said,
            next_step="name another `directory` (inventory.yaml)",
        )
    if closed.kind in ("hash", "busy", "failed"):
        return PushFailedError(host, "the artifact did not arrive whole", stderr=said)
    return fault(host, closed)


def outputs_fault(host: str, run_id: str, closed: StreamClosed) -> HostError:
    """The error for outputs that the host could not send."""
    if closed.kind == "unknown":
        return HostError(
            host, f"there is no run {run_id}", next_step=f"fab clean --dry-run --host {host} shows what is there"
        )
    if closed.kind in ("unreadable", "failed"):
        return OutputsError(
            host,
            "outputs: the host cannot read them",
            stderr=words(closed.text),
            next_step=f"make them readable there, then fab fetch --run {run_id}",
        )
    return fault(host, closed)


def unread_outputs(host: str, run_id: str, files: int, unread: tuple[tuple[str, str], ...]) -> OutputsError:
    """The error for outputs of which some stayed on the host; `unread` are paths and why."""
    came = f"{count(files, 'file')} came"
    if not unread:
        return OutputsError(
            host,
            f"outputs: {came}, and the host could not send the rest, which it keeps",
            next_step=f"fab fetch --run {run_id} brings what it can read",
        )
    if [path for path, _ in unread] == ["."]:  # the application may have removed it
        return OutputsError(
            host,
            f"outputs: {came}; the host cannot read their directory",
            stderr=unread[0][1],
            next_step=f"where it is still there, make it readable, then fab fetch --run {run_id}",
        )
    return OutputsError(
        host,
        f"outputs: {came}; what cannot be read there stays there:",
        stderr=listed([f"{path}: {why}" for path, why in unread], 9, "\n"),
        next_step=f"make them readable there, then fab fetch --run {run_id}",
    )


def _namespace_refused(host: str, said: str) -> HostError:
    """The error for a host whose kernel gives out no namespaces, or which lacks the tools."""
    return HostError(
        host,
        "a store of the user's own cannot be shown at /nix/store there",
        stderr=said,
        next_step="let the kernel there give users namespaces (user.max_user_namespaces and the like, see "
        f"`sysctl -a`), or install Nix on {host} and say `store: nix`, or build without Nix: `builder: command` "
        "(inventory.yaml)",
    )


def problem_of(said: object) -> str:
    """The agent's word for what is wrong with a program; a carriage return stays to be seen."""
    return words(said.replace("\r", "\\r") if isinstance(said, str) else said)


def program_error(host: str, kind: str, argv: Sequence[str], *, far_program: str = "", built: bool = True) -> HostError:
    """Why a program cannot be started: `kind` is the agent's word, with a detail behind a colon.

    `argv`: the program with its arguments. `far_program`: what the host calls it.
    `built`: it is what a build made, and not a command that somebody typed.
    """
    name, _, detail = kind.partition(":")
    if name == "namespace":
        return _namespace_refused(host, detail)
    if name == "format":
        machine = detail.removeprefix("elf-")
        what = f"in the format {detail}" if machine == detail else f"for {_MACHINES.get(machine, f'machine {machine}')}"
        reason = f"is a program {what}, which {host} cannot run"
        next_step = f"build it for {host}; its 'system' in inventory.yaml may be wrong"
    elif name == "interpreter" and detail.endswith("\\r"):
        reason = f"is a script with Windows line ends (CRLF): its first line names a program {detail!r}"
        next_step = "save it with Unix line ends (perl -pi -e 's/\\r$//' FILE; `* text=auto eol=lf` in .gitattributes)"
    elif name == "interpreter":
        reason = f"needs {detail} to start, which is not there"
        next_step = "build it static or for that distribution, or install what it needs"
        next_step = next_step if built else "install that there, or name another program"
    elif name == "not-executable":
        reason = "is not executable"
        next_step = "set its execute permission" + (" where it is built" if built else "")
    elif name == "directory":
        reason = "is a directory"
        next_step = "name the program in it"
    else:
        reason = "is not there"
        next_step = "check the program's name, and where the build puts it"
        if not built:
            next_step = f"check the name, give its whole path, or install it on {host}"
        if not built and any(character.isspace() for character in argv[0]):
            next_step = f"no shell splits it into words; to have one: sh -c {shlex.quote(argv[0])}"
        elif not built and needs_shell(argv):
            reason = "means something to a shell alone, and there is no shell"
            next_step = f"to have one: {shell_line(argv)}"
    return HostError(host, f"{far_program or argv[0]}: {reason}", next_step=next_step)
