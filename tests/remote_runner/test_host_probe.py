"""What probe.sh says in every sh, and by which tools it finds out."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import HostLostError
from remote_runner.far_shell import load_script
from remote_runner.host_facts import HostFacts
from remote_runner.host_probe import probe_host
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.systems import System
from tests.needs import need
from tests.remote_runner.shell_host import LostHost, ShellHost

SHELLS = ["dash", "bash", "busybox sh"]


@pytest.fixture
def near(tmp_path: Path) -> Controller:
    made = Controller(tmp_path / "runtime", tmp_path / "cache")
    made.runtime.mkdir()
    made.cache.mkdir()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "far home"
    directory.mkdir()
    return directory


def ask(
    near: Controller,
    home: Path,
    *,
    path: str = os.environ["PATH"],
    sh: str = "/bin/sh",
    wrap: Sequence[str] = (),
) -> HostFacts:
    host = ShellHost({"HOME": str(home), "PATH": path, "SHELL": "/bin/ksh"}, sh=sh, wrap=wrap)
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).host("shellhost")
    probed = probe_host(host, entry, controller=near, deadline=Deadline.after(30))
    assert probed.error is None
    assert host.sessions == 1
    return probed.facts


def tool(directory: Path, name: str, script: str) -> str:
    """A PATH that begins with a program of the test's own."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_sh_says_the_same(tmp_path: Path, near: Controller, home: Path, shell: str) -> None:
    need(shell.split()[0])
    facts = ask(near, home, sh=f"{shutil.which(shell.split()[0])} {' '.join(shell.split()[1:])}".strip())
    assert facts.system == System.local()
    assert facts.kernel == os.uname().release
    assert facts.shell == "/bin/ksh"
    assert facts.base == f"{home}/.cache/remote-runner"
    stat = os.statvfs(home)
    assert facts.free_bytes == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.1)
    assert facts.sshd is None
    assert facts.nix is not None
    assert facts.python is not None
    assert facts.clock is not None
    assert abs(facts.clock.offset_s) <= facts.clock.uncertainty_s < 0.5


def test_busybox_alone_says_as_much_as_it_can(tmp_path: Path, near: Controller, home: Path) -> None:
    need("busybox")
    tools = tmp_path / "busybox"
    tools.mkdir()
    subprocess.run(["busybox", "--install", "-s", tools], check=True)
    facts = ask(near, home, sh=f"{shutil.which('busybox')} sh", path=str(tools))
    assert facts.system == System.local()
    assert facts.free_bytes
    assert facts.python is None
    # Its date shows whole seconds, and there is no perl.
    assert facts.clock is not None
    assert 0.5 <= facts.clock.uncertainty_s < 1
    assert abs(facts.clock.offset_s) <= facts.clock.uncertainty_s


@pytest.mark.parametrize("ahead_s", [100, -3600])
@pytest.mark.parametrize("knows_nanoseconds", [True, False])
def test_a_clock_that_is_wrong(
    tmp_path: Path, near: Controller, home: Path, ahead_s: int, knows_nanoseconds: bool
) -> None:
    # No namespace has a wall clock of its own, so the host's is what its date says.
    there = f'exec {shutil.which("date")} -d "now {ahead_s:+d} seconds" "$@"'
    if not knows_nanoseconds:
        there = f"case $1 in *N) echo 12.N; exit ;; esac\n{there}"
        tool(tmp_path / "tools", "perl", "exit 1")
    path = tool(tmp_path / "tools", "date", there)
    clock = ask(near, home, path=path).clock
    assert clock is not None
    assert abs(clock.offset_s - ahead_s) <= clock.uncertainty_s < (0.3 if knows_nanoseconds else 0.8)


def test_perl_tells_the_time_where_date_knows_whole_seconds(tmp_path: Path, near: Controller, home: Path) -> None:
    path = tool(tmp_path / "tools", "date", "echo 12.N")  # as macOS answers `date +%s.%N`
    clock = ask(near, home, path=path).clock
    assert clock is not None
    assert abs(clock.offset_s) <= clock.uncertainty_s < 0.3


@pytest.mark.parametrize("shell", SHELLS)
def test_a_kernel_that_refuses_user_namespaces(tmp_path: Path, near: Controller, home: Path, shell: str) -> None:
    need("netns", shell.split()[0])
    # The limit holds below the namespace that sets it.
    limit = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    wrap = (str(shutil.which("unshare")), "-U", "-r", "/bin/sh", "-c", limit, "sh")
    sh = f"{shutil.which(shell.split()[0])} {' '.join(shell.split()[1:])}".strip()
    facts = ask(near, home, sh=sh, wrap=wrap)
    assert facts.user_namespaces is False
    assert "No space left on device" in facts.user_namespaces_problem


def test_settings_of_sshd_are_read_as_it_reads_them(tmp_path: Path, near: Controller, home: Path) -> None:
    more = tmp_path / "more.d"
    more.mkdir()
    (more / "1.conf").write_text("Match User nobody\n  MaxSessions 1\n")
    (more / "2.conf").write_text("  maxsessions=5\n")
    (more / "loop.conf").write_text(f"Include {more}/loop.conf\n")
    config = tmp_path / "sshd_config"
    config.write_text(
        f"# MaxSessions 99\ninclude {more}/*.conf /not/there\nMaxSessions 7\nAllowTcpForwarding no\n"
        "Match User ann\nMaxStartups 1\n"
    )
    # As an ordinary user finds it: not to be asked, but to be read.
    script = load_script("probe.sh").partition("rr_find_clock 2>")[0] + f'\nrr_sshd_lines "{config}" 0\n'
    for shell in ("dash", "bash"):
        need(shell)
        done = subprocess.run([shell, "-c", f"nonce=x\n{script}"], capture_output=True, text=True, check=True)
        assert [line for line in done.stdout.split("\n") if line] == [
            "x sshd maxsessions=5 ",
            "x sshd MaxSessions 7",
            "x sshd AllowTcpForwarding no",
        ]


def test_a_lost_host_is_an_error_and_nothing_more(near: Controller, home: Path) -> None:
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).host("shellhost")
    lost = LostHost({"HOME": str(home), "PATH": os.environ["PATH"]})
    probed = probe_host(lost, entry, controller=near, deadline=Deadline.after(30))
    assert isinstance(probed.error, HostLostError)
    assert probed.facts == HostFacts()


def test_nothing_but_the_base_directory_is_made(near: Controller, home: Path) -> None:
    ask(near, home)
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == [
        ".cache",
        ".cache/remote-runner",
        ".cache/remote-runner/.probe",
    ]
