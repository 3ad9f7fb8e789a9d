"""Compositions that are templates: filled in as Testground does (v0.6.0, pkg/cmd/template.go).

The language is that of Go's text/template and its TOML that of a module for Go, so a small program in Go does it
(`template-go/`), built when the first template is met.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testground.errors import CompositionError

_SOURCES = Path(__file__).resolve().parent / "template-go"
_BUILD_S = 300.0
_FILL_IN_S = 60.0
_MOST_WORDS = 500


def _on_path(environ: Mapping[str, str]) -> str | None:
    return shutil.which("go", path=environ.get("PATH"))


@dataclass(frozen=True)
class Templates:
    """What it takes to fill in templates: the environment that they see, and where the program for them is kept."""

    environ: Mapping[str, str]
    cache: Path
    find_go: Callable[[Mapping[str, str]], str | None] = _on_path

    def fill_in(self, text: str, path: Path) -> str:
        """The text that the template at `path` gives. Raises `CompositionError`, which names the line."""
        program = self._program(path)
        argv = [str(program), str(path.parent)]
        done = _run(argv, path, "filling in the template", self.environ, _FILL_IN_S, given=text.encode())
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode != 0:
            found = re.fullmatch(r"template: tpl:(\d+):(?:\d+:)? ?(.*)", said, re.DOTALL)
            where, said = (f"line {found[1]}", found[2]) if found else ("", said)
            # Go may print what it stumbled over, and that is the environment: nothing to be shown.
            said = re.sub(r"map\[.*", "map[…]", said, flags=re.DOTALL)[:_MOST_WORDS]
            raise CompositionError(str(path), where, f"is a template that cannot be filled in: {said}")
        try:
            return done.stdout.decode()
        except UnicodeDecodeError as fault:
            raise CompositionError(str(path), "", f"its template does not give UTF-8: {fault.reason}") from fault

    def _program(self, path: Path) -> Path:
        """The program, built where it is missing or no longer what was built."""
        sources = [_SOURCES / name for name in ("go.mod", "go.sum", "main.go")]
        key = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources))
        key.update("-".join((os.uname().sysname, os.uname().machine)).encode())  # a home may serve several machines
        program = self.cache / "template" / key.hexdigest()[:16]
        checksum = program.with_suffix(".sha256")
        try:
            if checksum.is_file() and program.is_file() and checksum.read_text("ascii") == _checksum(program):
                return program
            program.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="new.", dir=program.parent) as aside:
                built = Path(aside) / "template"
                self._build(built, path)
                (Path(aside) / "sha256").write_text(_checksum(built), encoding="ascii")
                built.replace(program)
                (Path(aside) / "sha256").replace(checksum)
        except (OSError, UnicodeDecodeError) as fault:
            raise CompositionError(
                str(path),
                "",
                f"is a template, and the program for those cannot be kept in {program.parent}: {fault}",
                next_step="make room there, or name another directory with REMOTE_RUNNER_CACHE_DIR",
            ) from fault
        return program

    def _build(self, built: Path, path: Path) -> None:
        go = self.find_go(self.environ)
        if go is None:
            raise CompositionError(
                str(path),
                "",
                "is a template, {{…}}, which needs Go to be filled in, and there is no Go here",
                next_step="install Go 1.21 or newer, or write the values into a composition of its own",
            )
        environ = {
            **self.environ,
            "GOCACHE": self.environ.get("GOCACHE") or str(self.cache / "go-build"),
            "GOMODCACHE": self.environ.get("GOMODCACHE") or str(self.cache / "go-modules"),
            "GOFLAGS": "-mod=readonly -modcacherw -trimpath -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "GO111MODULE": "on",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
            "GOOS": "",  # this machine's
            "GOARCH": "",
        }
        argv = [go, "build", "-o", str(built), "."]
        done = _run(argv, path, "building the program for templates", environ, _BUILD_S, cwd=_SOURCES)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-_MOST_WORDS:]
            raise CompositionError(
                str(path),
                "",
                f"is a template, and the program for those cannot be built with {go}:\n{said}",
                next_step="let Go reach its module proxy once, or name another with GOPROXY; "
                "or write the values into a composition of its own",
            )


def _run(
    argv: Sequence[str],
    path: Path,
    what: str,
    environ: Mapping[str, str],
    timeout_s: float,
    *,
    given: bytes = b"",
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            argv, env=environ, input=given, cwd=cwd, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as fault:
        raise CompositionError(str(path), "", f"{what} took longer than {timeout_s:g} s") from fault
    except OSError as fault:
        raise CompositionError(str(path), "", f"{what}: {argv[0]} cannot be started: {fault.strerror}") from fault


def _checksum(program: Path) -> str:
    return hashlib.sha256(program.read_bytes()).hexdigest()
