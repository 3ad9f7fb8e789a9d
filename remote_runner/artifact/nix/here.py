"""Nix on this machine: where its programs are, and the environment that they get."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

# What lets any Nix since 2.4 take the verbs used here; one that has them on already does not mind.
FLAKES = ("--extra-experimental-features", "nix-command flakes")


@dataclass(frozen=True)
class Nix:
    """Nix's programs on this machine, as paths, and their environment."""

    nix: str
    nix_store: str
    nix_instantiate: str
    environ: Mapping[str, str]


def nix_directories(home: str, user: str) -> tuple[str, ...]:
    """Where Nix's programs usually lie, where they are not on PATH (a daemon's, a cron job's, Testground's)."""
    return (
        "/nix/var/nix/profiles/default/bin",
        f"{home}/.nix-profile/bin",
        "/run/current-system/sw/bin",
        f"/etc/profiles/per-user/{user}/bin",
        "/usr/local/bin",
        "/usr/bin",
    )


def find_nix(environ: Mapping[str, str]) -> Nix | None:
    """Nix as `PATH` has it, else as one of the usual places has it; `None` where it is not installed.

    Its environment is `environ` with the user's home, which Testground does not hand on, and with those places at the
    end of `PATH` (Nix starts git and ssh).
    """
    try:
        known = pwd.getpwuid(os.getuid())
        home, user = known.pw_dir, known.pw_name
    except KeyError:  # a container's user
        home, user = environ.get("HOME", "/"), environ.get("USER", "")
    path = os.pathsep.join((environ.get("PATH") or os.defpath, *nix_directories(home, user)))
    nix, store, instantiate = (_program(name, path) for name in ("nix", "nix-store", "nix-instantiate"))
    if nix is None or store is None or instantiate is None:
        return None
    return Nix(nix, store, instantiate, {"HOME": home, **environ, "PATH": path})


def _program(name: str, path: str) -> str | None:
    # As shutil.which does; importing shutil would cost each instance 4 ms.
    files = (f"{directory}/{name}" for directory in path.split(os.pathsep) if directory)
    return next((file for file in files if os.path.isfile(file) and os.access(file, os.X_OK)), None)  # noqa: PTH113
