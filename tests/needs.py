"""What a test needs from the machine: a skip that says how to get it, or a failure where REQUIRE names it.

`REQUIRE=ssh,netns make test` turns the skips for these needs into failures; CI names every need it installs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from inspect import unwrap

import pytest

from tests import arm_tree, rust_std


def _program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") for name in names)


def _can_make_namespaces() -> bool:
    if os.geteuid() != 0 or not _program("ip", "unshare", "sshd")():
        return False
    name = f"rr-need-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=True)
    return made


def _has_nix() -> bool:
    # A Nix that lies in the store itself goes out of sight with it.
    found = shutil.which("nix-daemon", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return _can_make_namespaces() and found is not None and not os.path.realpath(found).startswith("/nix/")


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "ssh": (_program("ssh", "sshd", "ssh-keygen"), "install openssh-server and openssh-client"),
    "netns": (_can_make_namespaces, "run as root, with iproute2, util-linux and openssh-server installed"),
    "nix": (_has_nix, "run as root with nix-bin installed (a Nix outside /nix), and what netns needs"),
    "go": (_program("go"), "install golang-go"),
    "npm": (_program("node", "npm"), "install nodejs and npm"),
    "rust": (
        lambda: not rust_std.lacking(),
        "install Debian's rustc-web, cargo-web, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
    ),
    "cargo": (_program("cargo"), "install cargo, or Debian's cargo-web and rustc-web"),
    "arm64": (
        lambda: not arm_tree.lacking(),
        "run as root on Debian with mmdebstrap and qemu-user-static installed, on a kernel with binfmt_misc",
    ),
    "ansible": (_program("ansible-inventory"), "install ansible-core"),
    "slurm": (
        lambda: _program("slurmctld", "slurmd", "munged", "srun")() and _can_make_namespaces(),
        "run as root, with slurmctld, slurmd, slurm-client, munge, iproute2 and util-linux installed",
    ),
    "shellcheck": (_program("shellcheck"), "install shellcheck"),
    "sync-service": (
        lambda: _program("sync-service")() and _can_make_namespaces(),
        "have Testground's sync-service on PATH, which no registry has; run as root, with iproute2 and util-linux",
    ),
    "testground": (
        _program("testground", "sync-service", "dockerd", "docker", "redis-server", "influxd", "busybox", "go"),
        "have testground v0.6.0 and sync-service on PATH, which no registry has, and install docker.io, redis-server, "
        "influxdb, busybox and golang-go; run as root",
    ),
    "docker": (
        lambda: os.geteuid() == 0 and _program("dockerd", "docker")(),
        "run as root, with docker.io installed",
    ),
    "influxdb": (_program("influxd"), "install influxdb"),
    "redis": (_program("redis-server"), "install redis-server"),
    "chromium": (_program("chromium"), "install chromium (Debian's: Ubuntu has a snap)"),
    "bash": (_program("bash"), "install bash"),
    "dash": (_program("dash"), "install dash"),
    "busybox": (_program("busybox"), "install busybox"),
    "bsdtar": (_program("bsdtar"), "install libarchive-tools"),
    "fish": (_program("fish"), "install fish"),
    "tcsh": (_program("tcsh"), "install tcsh"),
    "zsh": (_program("zsh"), "install zsh"),
    "tmux": (_program("tmux"), "install tmux"),
}


@cache
def _has(name: str) -> bool:
    return NEEDS[name][0]()


def need(*names: str) -> None:
    """Skip the test unless this machine has everything named (keys of `NEEDS`); fail where REQUIRE names it."""
    required = {name.strip() for name in os.environ.get("REQUIRE", "").split(",") if name.strip()}
    unknown = required - NEEDS.keys()
    if unknown:
        pytest.fail(f"REQUIRE names {', '.join(sorted(unknown))}; known: {', '.join(NEEDS)}")
    for name in names:
        if not _has(name):
            message = f"needs {name}: {NEEDS[name][1]}"
            if name in required:
                pytest.fail(message)
            pytest.skip(message)


def needs_of(*functions: Callable[..., object]) -> set[str]:
    """What these functions ask of `need`; `needs` where the code does not say what, since the test's parameter does."""
    found: set[str] = set()
    for function in functions:
        code = unwrap(function).__code__
        if "need" in code.co_names:
            constants = {word for one in code.co_consts for word in (one if isinstance(one, tuple) else (one,))}
            found |= constants & NEEDS.keys() or {"needs"}
    return found
