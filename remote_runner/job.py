"""What shall run on a host, and the words in which its supervisor is told (over stdin, never a command line)."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from remote_runner.artifact.far_artifact import FarArtifact, Store
from remote_runner.errors import JobError
from remote_runner.far_shell import load_script, quoted
from remote_runner.file_names import safe_name
from remote_runner.marks import mark_for
from remote_runner.outputs import DEFAULT_LIMIT_BYTES

# What a host that waits, and has nothing to lose, waits longer than `tolerate_s`: a connection recovers from a cut.
RECOVERY_S = 8.0

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Variables that some sh keeps for itself (read-only, counted, not passed on, or setting them changes how the script is
# read). They say nothing secret, so they may pass as arguments of env(1).
SHELL_OWN = re.compile(
    r"_|PWD|OLDPWD|SHLVL|IFS|OPT(IND|ARG|ERR)|PPID|E?UID|GROUPS|LINENO|S?RANDOM|SECONDS|EPOCH(SECONDS|REALTIME)"
    r"|FUNCNAME|FUNCNEST|DIRSTACK|HISTCMD|PS[12]|SHELLOPTS|BASH.*|POSIXLY_CORRECT|TMOUT|COLUMNS|LINES|rr_.*"
)
_LOCALE = re.compile(r"LANG|LANGUAGE|LC_.*")


@dataclass(frozen=True)
class Seat:
    """What a host is told of a run before it is known what shall run; see `Job` for the values."""

    instance_id: str
    directory: str | None
    grace_s: float
    tolerate_s: float


@dataclass(frozen=True)
class Job:
    """One instance as its host sees it.

    argv: the program and its arguments, any bytes but NUL. With `artifact` the program is a path in it; else an
        absolute path, or a name that is looked for on the host's PATH.
    environment: what the application gets, byte for byte. The supervisor adds `TEST_OUTPUTS_PATH`, `TEST_TEMP_PATH`
        and `REMOTE_RUNNER_INSTANCE`, and `TMPDIR` and `HOSTNAME` where they are not given.
    pass_through: names whose value is the host's own (where `environment` does not have them).
    grace_s: between TERM and KILL; tolerate_s: how long the host waits for a sign of life from here. Whole seconds
        there, rounded up. start_s, run_s, fetch_s: how long to wait for the start, the end (then it is stopped), the
        outputs, of which `outputs_limit_bytes` are taken at most.
    far_ports: our forwards there; where one of them is open to the network, the application is not started.
    directory: where on the host (`None` = the first that will do); keep: leave the run's directory there.
    record: further lines of the run's record on the host.

    The application starts in its temporary directory (`TEST_TEMP_PATH`), with an empty stdin.
    """

    instance_id: str
    argv: tuple[str | bytes, ...]
    environment: Mapping[str, str | bytes]
    artifact: FarArtifact | None = None
    pass_through: tuple[str, ...] = ("PATH", "HOME")
    grace_s: float = 10.0
    tolerate_s: float = 60.0
    start_s: float = 60.0
    run_s: float | None = None
    fetch_s: float = 300.0
    far_ports: tuple[int, ...] = ()
    outputs_limit_bytes: int = DEFAULT_LIMIT_BYTES
    directory: str | None = None
    keep: bool = False
    record: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_run_id(self.instance_id):
            raise JobError(f"{self.instance_id!r} is no name for a run: letters, digits and . _ - only, at most 200")
        if not self.argv or not self.argv[0]:
            raise JobError("there is no program to run")
        if self.grace_s < 0 or self.tolerate_s <= 0:
            raise JobError(f"grace_s {self.grace_s:g} and tolerate_s {self.tolerate_s:g} must be positive")
        for text in (*self.argv, *self.environment.values()):
            if b"\0" in _raw(text):
                raise JobError("an argument or a variable holds a NUL byte, which no program can be given")

    @property
    def seat(self) -> Seat:
        return Seat(self.instance_id, self.directory, self.grace_s, self.tolerate_s)

    @property
    def unnameable(self) -> tuple[str, ...]:
        """Variables that no sh can hand over, so that the application goes without them."""
        return tuple(sorted(name for name in self.environment if not _NAME.fullmatch(name)))


def is_run_id(name: str) -> bool:
    """Whether a run on a host can have this name; it is safe as the name of a file."""
    return _ID.fullmatch(name) is not None


def instance_id(run: str, group: str, number: int | str) -> str:
    """A run's name on its host, of Testground's words for it."""
    return safe_name(f"{run}-{group}-{number}")


@functools.cache
def supervisor_script() -> bytes:
    """What every run's script begins with. It is kept: the warm process reads it for its children, 0.5 ms for each."""
    return load_script("base.sh", "supervisor.sh").encode()


def prepare(seat: Seat, nonce: str, secret: str, shell: str) -> bytes:
    """The first part of a session's script: the functions, and what can be done before there is a job.

    `secret` goes into the marker variable, so that a process with it can be no other run's.
    """
    values: dict[str, str | bytes] = {
        "rr_mark": mark_for(nonce),
        "rr_id": seat.instance_id,
        "rr_directory": seat.directory or "",
        "rr_marker": f"{seat.instance_id}:{secret}",
        "rr_grace_s": str(math.ceil(seat.grace_s)),
        "rr_tolerate_s": str(math.ceil(seat.tolerate_s)),
        "rr_wait_s": str(math.ceil(seat.tolerate_s + RECOVERY_S)),
        "rr_sh": shell,
        "rr_blanks": " \t\n",
        "rr_lost": "",
        "rr_tar": "",
    }
    return b"\n".join((supervisor_script(), _assigned(values), b"rr_prepare", b""))


def compose(job: Job) -> bytes:
    """The second part: the job's values, and last the call that starts it. Nothing may be sent behind it until then."""
    given = {name: value for name, value in job.environment.items() if _NAME.fullmatch(name)}
    special = [name for name in given if SHELL_OWN.fullmatch(name)]
    # A shell that is told of another locale reads on in that one, so these come last.
    plain = sorted((name for name in given if name not in special), key=lambda name: bool(_LOCALE.fullmatch(name)))
    exports = b"".join(b"export %s=%s\n" % (name.encode(), quoted(given[name])) for name in plain)
    words = b" ".join(quoted(name.encode() + b"=" + _raw(given[name])) for name in special)
    store, artifact = (job.artifact.store.value, job.artifact.name) if job.artifact else ("", "")
    record = {"id": job.instance_id, "artifact": artifact, **job.record}
    values: dict[str, str | bytes] = {
        "rr_store": store,
        "rr_artifact": artifact,
        "rr_ports": "|".join(f"{port:04X}" for port in job.far_ports),
        "rr_ports_decimal": "|".join(str(port) for port in job.far_ports),
        "rr_record": "\n".join(f"{key}={_line(value)}" for key, value in record.items()),
        "rr_keep": " ".join(name for name in job.pass_through if name not in given and _NAME.fullmatch(name)),
        "rr_set_tmpdir": "" if "TMPDIR" in given else "1",
        "rr_set_hostname": "" if "HOSTNAME" in given else "1",
        "rr_special": words,
    }
    script = b""
    if store == Store.USER.value:
        script = load_script("artifact/nix/user.sh").encode()
        values["rr_enter"] = load_script("artifact/nix/enter.sh")
    return b"\n".join(
        (
            script,
            _assigned(values),
            b"rr_environment() {\n:\n%s}" % exports,
            b"rr_supervise " + b" ".join(quoted(word) for word in job.argv),
            b"",
        )
    )


def _assigned(values: Mapping[str, str | bytes]) -> bytes:
    return b"\n".join(name.encode() + b"=" + quoted(value) for name, value in values.items())


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else os.fsencode(text)


def _line(text: str) -> str:
    return " ".join(text.split("\n"))
