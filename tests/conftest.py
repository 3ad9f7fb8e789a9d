"""Fixtures for every test: nothing of the developer's own ssh, directories of this test only, real hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests import hosts_nix
from tests.arm_tree import arm_tree as make_arm_tree
from tests.brokers_end import end_brokers
from tests.hosts import Keys, TestHost, UserSshd, which
from tests.hosts_netns import Lan, NetnsHost
from tests.needs import NEEDS, need, needs_of
from tests.nix_bed import NixHere, private_nix
from tests.nix_plan import make_stub

ROOT = Path(__file__).parent.parent
_AGENT_VARIABLES = ("SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "KRB5CCNAME")

# A background job of a script, as CI may be, ignores SIGINT, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs: the test needs something of the machine, which has a mark of its name")
    for name in NEEDS:
        config.addinivalue_line("markers", f"{name.replace('-', '_')}: needs {name} (tests/needs.py); set by itself")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it and its fixtures need, so that `-m 'not nix'` and `make fast` leave it out.

    The files that take longest come first: with them at the end, one worker would be left alone with the last.
    """
    items.sort(key=lambda item: "integration" not in item.path.parts)
    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        for name in needs_of(item.function, *(one.func for several in fixtures for one in several)):
            item.add_marker(name.replace("-", "_"))
            item.add_marker("needs")


@pytest.fixture(autouse=True)
def ssh_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The ssh_config(5) that `ssh` reads in this test instead of the developer's (empty until the test writes to it).

    An `ssh` first on PATH names it; agents and askpass programs are out of sight. `None` where ssh is missing.
    """
    for name in _AGENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    try:
        ssh = which("ssh")
    except FileNotFoundError:
        return None
    directory = tmp_path_factory.mktemp("ssh")
    config = directory / "config"
    config.touch()
    guard = directory / "ssh"
    guard.write_text(f'#!/bin/sh\nexec {ssh} -F "${{0%/*}}/config" "$@"\n', encoding="utf-8")
    guard.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return config


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """The controller's directories for this test, also in the environment of what it starts; its brokers are ended."""
    runtime = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))  # socket paths are short
    monkeypatch.setenv("REMOTE_RUNNER_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("REMOTE_RUNNER_CACHE_DIR", str(tmp_path / "cache"))
    try:
        yield Controller.from_environ(os.environ)
    finally:
        end_brokers(runtime)
        shutil.rmtree(runtime, ignore_errors=True)  # a broker that has just ended takes its socket away meanwhile


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """One pair of keys for all hosts of the session."""
    need("ssh")
    return Keys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def user_sshd(tmp_path: Path, keys: Keys) -> Iterator[UserSshd]:
    """An sshd of the test's own user on loopback, with stock limits."""
    with UserSshd.start(tmp_path / "usershost", keys=keys) as host:
        yield host


@pytest.fixture(scope="session")
def lan() -> Iterator[Lan]:
    """The session's bridge; hosts for one test come from `netns_host`, longer-lived ones from `NetnsHost.start`."""
    need("ssh", "netns")
    with Lan.claim() as claimed:
        yield claimed


@pytest.fixture
def netns_host(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A machine of this test's own, named t1, root logs in."""
    with NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys) as host:
        yield host


@pytest.fixture(scope="session")
def nix_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NixHere]:
    """This machine's Nix: single user, offline, with a store of the tests' own; what a test starts has it as well.

    It stays until the session ends, so tests share the store.
    """
    need("nix")
    with private_nix(tmp_path_factory.mktemp("nix-here")) as nix, pytest.MonkeyPatch.context() as patch:
        for name, value in nix.environ.items():
            patch.setenv(name, value)
        yield nix


@pytest.fixture
def nix_host(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A machine named nix1 with a single-user store; root logs in."""
    need("nix")
    with hosts_nix.single_user(lan, tmp_path / "nix1", name="nix1", keys=keys) as host:
        yield host


@pytest.fixture
def nix_daemon_host(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A machine named nix2 with a nix-daemon; an ordinary user logs in whom the daemon does not trust."""
    need("nix")
    with hosts_nix.with_daemon(lan, tmp_path / "nix2", name="nix2", keys=keys) as host:
        yield host


@pytest.fixture
def foreign_nix_host(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A machine named nix3 with a single-user store of root's; an ordinary user logs in."""
    need("nix")
    with hosts_nix.of_somebody_else(lan, tmp_path / "nix3", name="nix3", keys=keys) as host:
        yield host


@pytest.fixture
def no_nix_host(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A machine named bare without Nix; an ordinary user logs in."""
    need("nix")  # here: what has to run there is built with it
    with hosts_nix.without_nix(lan, tmp_path / "bare", name="bare", keys=keys) as host:
        yield host


@pytest.fixture(scope="session")
def nixpkgs_stub(nix_here: NixHere, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for nixpkgs in the tests, for this machine's system; every other one is evaluated only."""
    need("busybox", "go")
    return make_stub(tmp_path_factory.mktemp("nixpkgs") / "stub")


@pytest.fixture(scope="session")
def nixpkgs_stub_for_arm(nix_here: NixHere, arm_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with programs for aarch64-linux, to be built here by the emulator or on an `arm_host`."""
    need("busybox", "go")
    return make_stub(tmp_path_factory.mktemp("nixpkgs-for-arm") / "stub", arm_tree)


@pytest.fixture(scope="session")
def arm_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root directory of an aarch64-linux machine; aarch64 programs start on this machine from now on.

    The agent's program for it is built into `build/agents`, where every test finds it: it takes Go a while.
    """
    need("arm64")
    build = [sys.executable, "-m", "remote_runner.connection.bootstrap.program", "aarch64-linux"]
    cache = {"REMOTE_RUNNER_CACHE_DIR": str(ROOT / "build" / "agent-cache")}
    subprocess.run(build, cwd=ROOT, env={**os.environ, **cache}, check=True)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the session's, for all its workers
    return make_arm_tree(shared / "arm-tree")


@pytest.fixture
def arm_host(lan: Lan, tmp_path: Path, keys: Keys, arm_tree: Path) -> Iterator[NetnsHost]:
    """An aarch64-linux machine named arm1 with a single-user store; root logs in."""
    need("nix")
    with hosts_nix.on_arm(lan, tmp_path / "arm1", tree=arm_tree, name="arm1", keys=keys) as host:
        yield host


@pytest.fixture
def known_by_name(ssh_config: Path | None) -> Callable[[TestHost], str]:
    """Call it with a host: from then on `ssh NAME` reaches it in this test, whatever starts ssh."""

    def add(host: TestHost) -> str:
        assert ssh_config is not None
        with ssh_config.open("a", encoding="utf-8") as file:
            file.write(host.config_block())
        return host.name

    return add
