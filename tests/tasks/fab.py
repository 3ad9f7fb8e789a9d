"""A plan in a directory of the test's own, and the programs that a person types in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parent.parent.parent
ONE_LINE_FABFILE = "from tasks import ns  # noqa: F401\n"
LIMIT_S = 90.0
FILES = ("sh", "-c", 'echo said; echo told >&2; echo 1 >"$TEST_OUTPUTS_PATH/a file"; exit 3')
"""A command that prints, leaves a file, and fails."""


@dataclass(frozen=True)
class Ran:
    """What a program left: its exit status, results (stdout) and words (stderr)."""

    status: int
    out: str
    words: str

    @property
    def data(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class PlanDirectory:
    """A plan: its directory, and the environment of what is started in it (this process's, and `environ`)."""

    path: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        """A file of the plan."""
        path = self.path / name
        path.write_text(text, encoding="utf-8")
        return path

    def inventory(self, text: str) -> None:
        self.write("inventory.yaml", text)

    def start(
        self, *words: str, program: str = "fab", stdout: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        """Start `fab` (or `remote-runner`) with these words; the caller waits for it."""
        argv = [str(Path(sys.executable).with_name(program)), *words]
        return subprocess.Popen(
            argv,
            cwd=self.path,
            env={**os.environ, **self.environ},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )

    def fab(self, *words: str, program: str = "fab") -> Ran:
        """Run it to its end, whatever its status."""
        process = self.start(*words, program=program)
        try:
            out, said = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, said = process.communicate()
            raise AssertionError(f"fab {' '.join(words)} did not end:\n{out!r}\n{said!r}") from None
        return Ran(process.returncode, out.decode(), said.decode())

    def ok(self, *words: str, program: str = "fab") -> Ran:
        """Run it; fail the test, with what it said, unless it ends with status 0."""
        ran = self.fab(*words, program=program)
        assert ran.status == 0, f"fab {' '.join(words)}: status {ran.status}\n{ran.out}\n{ran.words}"
        return ran
