"""Machines with a Nix store of their own, or none (root needed); each is a `NetnsHost`.

Nix's programs are this machine's (Debian's nix-bin); /nix and /etc/nix are the host's own, so copies are real.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.hosts import Keys, which
from tests.hosts_netns import Lan, NetnsHost
from tests.nix_bed import make_mount_points, write_nix_conf

_DAEMON = """nix-daemon </dev/null &
tries=0
until [ -S /nix/var/nix/daemon-socket/socket ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 1000 ]
    sleep 0.01
done"""


def _own_nix(directory: Path, *conf: str) -> dict[str, Path]:
    make_mount_points()
    (directory / "nix").mkdir(parents=True, exist_ok=True)
    return {"/nix": directory / "nix", "/etc/nix": write_nix_conf(directory / "etc-nix", *conf)}


def single_user(
    lan: Lan,
    directory: Path,
    *,
    name: str,
    keys: Keys,
    conf: tuple[str, ...] = (),
    binds: Mapping[str, Path] | None = None,
) -> NetnsHost:
    """Root logs in, and the store is root's. `conf`: further lines of its nix.conf(5)."""
    binds = {**_own_nix(directory, *conf), **(binds or {})}
    return NetnsHost.start(lan, directory, name=name, keys=keys, binds=binds)


def with_daemon(lan: Lan, directory: Path, *, name: str, keys: Keys, conf: tuple[str, ...] = ()) -> NetnsHost:
    """An ordinary user logs in, a nix-daemon serves them; they are trusted only if `conf` says so.

    `restart_daemon` makes it read its settings (`directory / "etc-nix"`) again.
    """
    binds = _own_nix(directory, *conf)
    return NetnsHost.start(
        lan, directory, name=name, keys=keys, ordinary_user=True, binds=binds, before_sshd=(_DAEMON,)
    )


def restart_daemon(host: NetnsHost) -> None:
    """A power cut and a boot: nothing else than a restart reads `trusted-public-keys` again."""
    host.kill()
    host.boot()


def of_somebody_else(lan: Lan, directory: Path, *, name: str, keys: Keys) -> NetnsHost:
    """An ordinary user logs in where root has a single-user store."""
    binds = _own_nix(directory)
    made = "nix-store --add /etc/hostname >/dev/null"  # the first command as root makes the store
    return NetnsHost.start(lan, directory, name=name, keys=keys, ordinary_user=True, binds=binds, before_sshd=(made,))


def without_nix(lan: Lan, directory: Path, *, name: str, keys: Keys, conf: tuple[str, ...] = ()) -> NetnsHost:
    """An ordinary user logs in; there is no /nix, and no program of Nix's runs. `conf`: of its sshd_config."""
    directory.mkdir(parents=True, exist_ok=True)
    nothing = directory / "no-nix"
    nothing.touch(mode=0o644)
    # The other names are links to this one.
    binds = {os.path.realpath(program): nothing for program in (which("nix"), which("nix-store"))}
    return NetnsHost.start(
        lan, directory, name=name, keys=keys, ordinary_user=True, config=conf, binds=binds, without=("/nix",)
    )


def on_arm(lan: Lan, directory: Path, *, tree: Path, name: str, keys: Keys, conf: tuple[str, ...] = ()) -> NetnsHost:
    """A real aarch64-linux userland (`tests/arm_tree.py`) with a single-user store; root logs in."""
    return NetnsHost.start(lan, directory, name=name, keys=keys, root=tree, binds=_own_nix(directory, *conf))
