"""An aarch64-linux machine on another processor: a Debian tree of its own, run by qemu's user mode emulation.

What it cannot do: make user namespaces (`unshare: Invalid argument`), since the emulator has threads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.hosts import which

_PACKAGES = (
    *("openssh-server", "nix-bin", "python3", "busybox-static", "coreutils", "bash", "dash", "hostname", "procps"),
    *("nodejs", "tar", "gzip", "findutils", "grep", "sed", "util-linux", "mount", "base-passwd", "libc-bin"),
)
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_QEMU = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")


def lacking() -> str:
    """What this machine lacks to run one, "" if nothing."""
    if os.geteuid() != 0:
        return "root"
    if os.uname().machine == "aarch64":
        return ""
    if not _QEMU.exists() or shutil.which("mmdebstrap") is None:
        return "mmdebstrap and qemu-user-static"
    if _os_release().get("ID") != "debian":
        return "Debian"
    if not (_BINFMT / "register").exists() and "binfmt_misc" not in Path("/proc/filesystems").read_text("ascii"):
        return "a kernel with binfmt_misc"
    return ""


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text("utf-8").splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def register_qemu() -> None:
    """Let the kernel start aarch64 programs by qemu, if it does not yet. For the whole kernel, until it restarts.

    The registration's F flag keeps the emulator open, so it is found from every root directory.
    """
    if os.uname().machine == "aarch64":
        return
    if not (_BINFMT / "register").exists():
        subprocess.run([which("mount"), "-t", "binfmt_misc", "none", str(_BINFMT)], check=True)
    if not (_BINFMT / "qemu-aarch64").exists():
        with suppress(FileExistsError):  # another test process was faster
            (_BINFMT / "register").write_text(_QEMU.read_text("utf-8").strip(), "utf-8")


def arm_tree(directory: Path) -> Path:
    """The tree at `directory`, made unless it is there (about 15 s, 340 MB, from Debian's mirrors); hosts share it."""
    register_qemu()
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            made = directory.with_name(f"{directory.name}.making")
            shutil.rmtree(made, ignore_errors=True)
            _make(made)
            made.rename(directory)
    return directory


def _make(tree: Path) -> None:
    options = ["--variant=extract", "--architectures=arm64", f"--include={','.join(_PACKAGES)}", "--quiet"]
    done = subprocess.run(
        [which("mmdebstrap"), *options, _os_release()["VERSION_CODENAME"], str(tree)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap ended with {done.returncode}:\n{done.stderr}")
    for name in ("passwd", "group"):
        shutil.copyfile(tree / f"usr/share/base-passwd/{name}.master", tree / "etc" / name)
    (tree / "etc" / "hosts").touch()
    for place in ("nix", "etc/nix", "run/sshd", "mnt", "dev/shm"):
        (tree / place).mkdir(parents=True, exist_ok=True)
