"""This machine's Nix for tests: a private mount namespace with a /nix and an /etc/nix of the tests' own.

    with private_nix(directory) as nix:     # this process, and what it starts from now on
        nix.run("nix", "build", …)

Nothing of the machine's own store, settings and caches is read or written; no substituters, no network.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remote_runner.connection.workers import FILES, Workers
from tests.hosts import which

SYSTEMS = ("x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin")
_CONF = """experimental-features = nix-command flakes
build-users-group =
substituters =
sandbox = false
"""
# From linux/sched.h and sys/mount.h. Python has os.unshare from 3.12 on.
_CLONE_NEWNS = 0x00020000
_MS_PRIVATE = 1 << 18


def write_nix_conf(directory: Path, *lines: str) -> Path:
    """Make `directory` what /etc/nix is: offline, nothing but these further lines of nix.conf(5)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "nix.conf").write_text(
        "".join(f"{line}\n" for line in (*_CONF.splitlines(), *lines)), encoding="utf-8"
    )
    return directory


def make_mount_points() -> None:
    """The two empty directories that a store and its settings are mounted on (root needed; they stay)."""
    for place in ("/nix", "/etc/nix"):
        Path(place).mkdir(mode=0o755, exist_ok=True)


@dataclass(frozen=True)
class NixHere:
    """Nix on this machine; the directories that stand for /nix and /etc/nix, and its caches."""

    directory: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What keeps Nix away from the developer's own settings and caches."""
        return {"NIX_USER_CONF_FILES": "", "XDG_CACHE_HOME": str(self.directory / "cache")}

    @property
    def nix(self) -> Path:
        """What /nix is."""
        return self.directory / "nix"

    def configure(self, *lines: str) -> None:
        """Set the further lines of nix.conf(5), in place of those that were there."""
        write_nix_conf(self.directory / "etc-nix", *lines)

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """stdout of a command of Nix's, without the last newline; raises RuntimeError with what it said."""
        done = subprocess.run(
            [which(argv[0]), *argv[1:]],
            cwd=cwd,
            env={**os.environ, **self.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout.rstrip("\n")

    def build(self, installable: str, *options: str) -> str:
        """Build it; its store path."""
        (built,) = json.loads(self.run("nix", "build", installable, "--no-link", "--json", *options))
        return str(built["outputs"]["out"])

    def is_valid(self, path: str) -> bool:
        """Whether a store path is valid here."""
        argv = [which("nix-store"), "--check-validity", path]
        return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0

    def closure(self, path: str) -> list[str]:
        """The store paths that a valid one needs, itself among them."""
        return self.run("nix-store", "-qR", path).split()


def own_mounts(*places: str) -> None:
    """Move this thread into a mount namespace of its own; what is mounted on these places is seen there only.

    Only there: /run/netns has to stay shared with who else looks for the hosts of a test.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    for place in {path for name in places for path in (Path(name), *Path(name).parents)}:
        libc.mount(None, bytes(place), None, _MS_PRIVATE, None)  # EINVAL: no mount of its own


def forget_threads() -> None:
    """Let what reads files start threads anew: those of earlier tests stay in the namespace of before."""
    for name, value in vars(Workers()).items():
        setattr(FILES, name, value)


@contextmanager
def private_nix(directory: Path) -> Iterator[NixHere]:
    """Move this process (the main thread) into a mount namespace where /nix and /etc/nix lie below `directory`.

    The process stays in its namespace afterwards; what was mounted is unmounted.
    """
    make_mount_points()
    (directory / "nix").mkdir(parents=True)
    write_nix_conf(directory / "etc-nix")
    own_mounts("/nix", "/etc/nix")
    for source, place in (("nix", "/nix"), ("etc-nix", "/etc/nix")):
        subprocess.run([which("mount"), "--bind", str(directory / source), place], check=True)
    forget_threads()
    try:
        yield NixHere(directory)
    finally:
        for place in ("/etc/nix", "/nix"):
            subprocess.run([which("umount"), "--lazy", place], check=True)


def simple_flake(
    directory: Path,
    *,
    name: str = "app",
    script: str = 'echo "hello from $0"',
    texts: Sequence[str] = (),
    build: str = "",
    systems: Sequence[str] = SYSTEMS,
) -> Path:
    """Write a flake without inputs into `directory`: `packages.<system>.<name>` with `bin/<name>`, a script in sh.

    `texts`: one more path of the closure for each, with that content. `build`: further lines in sh of the build
    ($out is there). A build takes about 0.1 s, and runs on every Linux with /bin/sh.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "program.sh").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    for number, text in enumerate(texts):
        (directory / "texts").mkdir(exist_ok=True)
        (directory / "texts" / f"{number:04}").write_text(text, encoding="utf-8")
    (directory / "build.sh").write_text(build, encoding="utf-8")
    listed = " ".join(f'"{number:04}"' for number in range(len(texts)))
    quoted = " ".join(f'"{system}"' for system in systems)
    (directory / "flake.nix").write_text(
        f"""{{
  outputs = {{ self }}: {{
    packages = builtins.listToAttrs (map (system: {{
      name = system;
      value."{name}" = derivation {{
        name = "{name}";
        inherit system;
        PATH = "/usr/bin:/bin";
        program = builtins.toFile "program.sh" (builtins.readFile ./program.sh);
        more = builtins.toFile "build.sh" (builtins.readFile ./build.sh);
        texts = map (n: builtins.toFile "text-${{n}}" (builtins.readFile (./texts + "/${{n}}"))) [ {listed} ];
        passAsFile = [ "texts" ];
        builder = "/bin/sh";
        args = [ "-ec" ''
          mkdir -p "$out/bin"
          cp "$program" "$out/bin/{name}"
          chmod 755 "$out/bin/{name}"
          cp "$textsPath" "$out/texts"
          . "$more"
        '' ];
      }} // {{ meta.mainProgram = "{name}"; }};
    }}) [ {quoted} ]);
  }};
}}
""",
        encoding="utf-8",
    )
    return directory
