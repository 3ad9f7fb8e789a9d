"""A job to run on a host, and the request for its agent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from remote_runner.connection.verbs.far_artifact import FarArtifact
from remote_runner.errors import RemoteRunnerError
from remote_runner.machine.files import safe_name
from remote_runner.outputs import DEFAULT_LIMIT_BYTES

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
# A request is one frame (docs/protocol.md, "Frames"); its head takes some of it.
_MOST_BYTES = (1 << 20) - (64 << 10)


class Window(NamedTuple):
    """The size of a terminal, in characters."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Job:
    """One instance as its host sees it.

    argv: the program and its arguments, any bytes but NUL. With `artifact` the program is a path in it; else an
        absolute path, or a name that is looked for on the host's PATH.
    environment: what the application gets, byte for byte. The agent adds `TEST_OUTPUTS_PATH`, `TEST_TEMP_PATH` and
        `REMOTE_RUNNER_INSTANCE`, and `TMPDIR` and `HOSTNAME` where they are not given.
    pass_through: names whose value is the host's own (where `environment` does not have them).
    grace_s: between TERM and KILL. start_s, run_s, fetch_s: how long to wait for the start, the end (then it is
        stopped), the outputs, of which `outputs_limit_bytes` are taken at most.
    terminal: the size of the terminal that it gets for its three streams; what it prints is all stdout then.
    cut_lines: whether the agent shortens lines that would end Testground's reading (and keeps them whole).
    record: further lines of the run's record on the host.

    The application starts in its temporary directory (`TEST_TEMP_PATH`).
    """

    instance_id: str
    argv: tuple[str | bytes, ...]
    environment: Mapping[str, str | bytes]
    artifact: FarArtifact | None = None
    pass_through: tuple[str, ...] = ("PATH", "HOME")
    grace_s: float = 10.0
    start_s: float = 60.0
    run_s: float | None = None
    fetch_s: float = 300.0
    outputs_limit_bytes: int = DEFAULT_LIMIT_BYTES
    terminal: Window | None = None
    cut_lines: bool = True
    record: Mapping[str, str] = field(default_factory=dict)
    _fields: list[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_run_id(self.instance_id):
            raise RemoteRunnerError(
                f"{self.instance_id!r} is not a name for a run: letters, digits and . _ - only, at most 200"
            )
        if not self.argv or not self.argv[0]:
            raise RemoteRunnerError("there is no program to run")
        if self.grace_s < 0:
            raise RemoteRunnerError(f"grace_s {self.grace_s:g} must be positive")
        object.__setattr__(self, "_fields", [*map(raw, self.argv), *variables(self.environment)])
        text = b"".join(self._fields)
        if b"\0" in text:
            raise RemoteRunnerError("an argument or a variable holds a NUL byte, which no program can be given")
        if len(text) + len(self._fields) > _MOST_BYTES:
            raise RemoteRunnerError(
                f"arguments and variables come to {len(text)} bytes; a host takes {_MOST_BYTES}",
                next_step="hand over large values in a file of the artifact",
            )

    @property
    def words(self) -> list[str]:
        """The program and its arguments, for messages."""
        return [*map(os.fsdecode, self.argv)]

    def request(self, *, stdin: bool) -> tuple[dict[str, Any], list[bytes]]:
        """The head and the fields of the request `run` (docs/protocol.md, "Verbs")."""
        store, artifact = (self.artifact.store.value, self.artifact.name) if self.artifact else ("", "")
        head = {
            "verb": "run",
            "id": self.instance_id,
            "argc": len(self.argv),
            "artifact": artifact,
            "store": store,
            "grace_s": self.grace_s,
            "run_s": self.run_s,
            "stdin": stdin,
            "fetch": True,
            "pass": [name for name in self.pass_through if name not in self.environment],
            "record": {key: " ".join(value.split("\n")) for key, value in self.record.items()},
            "set_tmpdir": "TMPDIR" not in self.environment,
            "set_hostname": "HOSTNAME" not in self.environment,
            "outputs_limit": self.outputs_limit_bytes,
            "cut_lines": self.cut_lines,
            **({"terminal": self.terminal._asdict()} if self.terminal else {}),
        }
        return head, self._fields


def is_run_id(name: str) -> bool:
    """Whether a run on a host can have this name; it is safe as the name of a file."""
    return _ID.fullmatch(name) is not None


def instance_id(run: str, group: str, number: int | str) -> str:
    """A run's name on its host, of Testground's words for it."""
    return safe_name(f"{run}-{group}-{number}")


def variables(values: Mapping[str, str | bytes]) -> list[bytes]:
    """Variables as the fields of a request: `NAME=VALUE`."""
    return [b"%s=%s" % (os.fsencode(name), raw(value)) for name, value in values.items()]


def raw(text: str | bytes) -> bytes:
    """A text as a host gets it, byte for byte."""
    return text if isinstance(text, bytes) else os.fsencode(text)
