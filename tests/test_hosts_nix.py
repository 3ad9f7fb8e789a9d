"""The machines with and without Nix are what they claim to be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts_netns import NetnsHost
from tests.integration.runs import wait_for
from tests.nix_bed import NixHere, simple_flake

ASK = "nix-store --add /etc/hostname"


def test_nix_here_builds_in_a_store_of_its_own(nix_here: NixHere, tmp_path: Path) -> None:
    flake = simple_flake(tmp_path / "flake", script="echo from $0", texts=["one", "two"], build="echo more > $out/more")
    out = nix_here.build(f"{flake}#packages.x86_64-linux.app")
    assert (
        subprocess.run([f"{out}/bin/app"], check=True, capture_output=True, text=True).stdout == f"from {out}/bin/app\n"
    )
    assert (nix_here.nix / out.removeprefix("/nix/") / "more").read_text() == "more\n"
    assert nix_here.is_valid(out)
    assert len(nix_here.closure(out)) == 3
    # Who was started before, or in another way, sees another /nix.
    outside = subprocess.run(["nsenter", "-t", "1", "-m", "test", "-e", out], check=False)
    assert outside.returncode == 1


def test_a_nix_host_has_a_store_of_its_own(nix_here: NixHere, nix_host: NetnsHost) -> None:
    added = nix_host.ssh(ASK).decode().strip()
    assert nix_host.as_root(f"nix-store --check-validity {added} && id -u") == "0"
    assert not nix_here.is_valid(added)
    assert (nix_host.directory / "nix" / added.removeprefix("/nix/")).exists()
    nix_host.kill()
    nix_host.boot()
    assert nix_host.as_root(f"nix-store -qR {added}") == added


def test_a_daemon_does_not_trust_the_ordinary_user(nix_daemon_host: NetnsHost) -> None:
    added = nix_daemon_host.ssh(ASK).decode().strip()
    assert nix_daemon_host.as_root(f"nix-store --check-validity {added}; stat -c %u {added}") == "0"
    said = nix_daemon_host.ssh("nix store ping --debug --option sandbox true 2>&1; id -un").decode()
    assert "not a trusted user" in said
    assert said.split()[-1] == "tester"


def test_somebody_elses_store_refuses(foreign_nix_host: NetnsHost) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        foreign_nix_host.ssh(ASK)
    assert b"denied" in caught.value.stderr.lower() or b"could not set permissions" in caught.value.stderr
    assert foreign_nix_host.as_root(ASK).startswith("/nix/store/")


def test_a_bare_host_has_no_nix_and_makes_user_namespaces(nix_here: NixHere, no_nix_host: NetnsHost) -> None:
    said = no_nix_host.ssh(
        "ls -d /nix /etc/nix/* 2>/dev/null;"
        "for p in nix nix-store nix-daemon; do $p --version 2>/dev/null && echo $p; done;"
        "id -un; unshare -r id -u; ls /usr/bin/env"
    )
    assert said.decode().split() == ["tester", "0", "/usr/bin/env"]


def test_an_arm_host_is_an_aarch64_machine_with_nix(nix_here: NixHere, arm_host: NetnsHost, tmp_path: Path) -> None:
    assert arm_host.ssh("uname -m; id -un").decode().split() == ["aarch64", "root"]
    # ELF's e_machine, at byte 18: 183 is EM_AARCH64.
    assert arm_host.ssh("od -An -tu2 -j18 -N2 /proc/self/exe").split() == [b"183"]
    flake = simple_flake(tmp_path / "flake")
    drv = nix_here.run("nix", "eval", "--raw", f"{flake}#packages.aarch64-linux.app.drvPath")
    exported = nix_here.directory / "exported"
    nix_here.run("sh", "-c", f"nix-store --export $(nix-store -qR {drv}) >{exported}")
    arm_host.ssh("nix-store --import >/dev/null", input_bytes=exported.read_bytes())
    out = arm_host.ssh(f"nix-store -r {drv}").decode().strip()
    assert arm_host.ssh(f"{out}/bin/app").decode() == f"hello from {out}/bin/app\n"
    assert not nix_here.is_valid(out)
    arm_host.ssh("setsid sleep 4711 </dev/null >/dev/null 2>&1 &")
    # The emulator is not seen. Neither the shell's child nor setsid may have come to its exec yet.
    wait_for(lambda: [process.command for process in arm_host.processes()] == ["sleep 4711"], 20.0)
