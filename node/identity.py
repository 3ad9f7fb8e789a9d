"""Where this instance runs, as seen from inside."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

# ELF's e_machine.
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
# Nix's names of the processors that uname calls otherwise.
_PROCESSORS = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class Identity:
    """This process and its machine; what remote-runner alone knows is empty, or 0, without it.

    `host` is the machine's own name and `name` the inventory's; `system` is named as Nix does (`x86_64-linux`);
    `address` is what peers dial; `number` is the instance's place in the run, from 1 on. `executable` is the program
    that runs, `executable_for` the processor that it was built for (from its ELF header; empty where it has none).
    """

    host: str
    pid: int
    system: str
    name: str = ""
    address: str = ""
    number: int = 0
    executable: str = ""
    executable_for: str = ""

    @classmethod
    def of_this_process(cls, environ: Mapping[str, str]) -> Identity:
        """What the machine says, and the `REMOTE_RUNNER_*` variables of `environ`."""
        uname = os.uname()
        number = environ.get("REMOTE_RUNNER_NUMBER", "")
        executable = _executable()
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            system=f"{_PROCESSORS.get(uname.machine, uname.machine)}-{uname.sysname.lower()}",
            name=environ.get("REMOTE_RUNNER_HOST", ""),
            address=environ.get("REMOTE_RUNNER_ADDRESS", ""),
            number=int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0,
            executable=executable,
            executable_for=_processor_of(executable),
        )

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name not in ("", self.host) else ""
        return f"host {self.host}{name}, process {self.pid}, system {self.system}"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def _executable() -> str:
    try:
        return str(Path("/proc/self/exe").readlink())
    except OSError:  # macOS has no /proc
        return os.path.realpath(sys.executable)


def _processor_of(executable: str) -> str:
    try:
        with Path(executable).open("rb") as file:
            header = file.read(20)
    except OSError:
        return ""
    machine = int.from_bytes(header[18:20], "little")
    return _ELF_MACHINES.get(machine, str(machine)) if header[:4] == b"\x7fELF" else ""
