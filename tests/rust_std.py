"""Rust's standard library for aarch64-linux, which Debian's rustc for this machine links against."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.hosts import which

# Beside a toolchain of the user's own, for which no library of another processor can be installed.
BIN = "/usr/bin"
_PACKAGE = "libstd-rust-web-dev"


def lacking() -> str:
    """What this machine lacks to build for both processors, "" if nothing."""
    programs = ("cargo", "rustc", "aarch64-linux-gnu-gcc", "apt-get", "dpkg-deb", "dpkg-query")
    missing = [name for name in programs if shutil.which(name, path=BIN) is None]
    return ", ".join(missing)


def aarch64_sysroot(directory: Path) -> Path:
    """What rustc's `--sysroot` takes: the library of the installed rustc's own version, unpacked in `directory`.

    Debian's package alone and not installed, with package lists of its own: 4 s, with 35 MB to fetch.
    """
    for place in ("lists/partial", "cache/archives/partial"):
        (directory / place).mkdir(parents=True)
    apt = [which("apt-get"), "-qq", "-o", "APT::Architectures=arm64", "-o", "APT::Sandbox::User=root"]
    apt += ["-o", f"Dir::State::Lists={directory}/lists", "-o", f"Dir::Cache={directory}/cache"]
    asked = [which("dpkg-query"), "-W", "-f", "${Version}", _PACKAGE]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    for words in (["update"], ["download", f"{_PACKAGE}:arm64={version}"]):
        subprocess.run([*apt, *words], cwd=directory, check=True)
    (package,) = directory.glob("*.deb")
    subprocess.run([which("dpkg-deb"), "-x", package, directory / "root"], check=True)
    return directory / "root" / "usr"
