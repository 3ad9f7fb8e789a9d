"""Nix: our pushes against bare `nix copy`, and instances against the script that copies with it (root)."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import ours
from benchmarks.ground import APPLICATION, Ground, Way
from benchmarks.ours import Plan
from benchmarks.peers import Crowd, script
from benchmarks.rows.pushes import large_file, pushed
from benchmarks.rows.settings import RTT_S
from benchmarks.stage import Stage
from benchmarks.work import Bound, Contestant, Trial, Work
from remote_runner.inventory.systems import System
from tests.delay import DelayProxy
from tests.hosts import which
from tests.hosts_nix import single_user
from tests.nix_bed import NixHere, simple_flake

FILES = 5_000
FILE_BYTES = 4096
FLAKE = {"builder": "nix", "flake": "path:."}
_COPY = "`nix copy`"
_SCRIPT = "script with `nix copy`"
_LACKS_COPY = "copies only, over a connection of its own"
_LACKS_SCRIPT = "no retry or supervision"


@contextmanager
def _host(ground: Ground) -> Iterator[Sequence[Way]]:
    if ground.lan is None or ground.nix is None:
        raise RuntimeError("it takes root, Nix outside /nix, and network namespaces")
    with single_user(
        ground.lan, ground.directory / f"nix{ground.lan.next_host}", name="nixbench", keys=ground.keys
    ) as host:
        ground.adopt(host)
        yield [Way(host, host.target)]


@contextmanager
def _far_host(ground: Ground) -> Iterator[Sequence[Way]]:
    with _host(ground) as (way,), DelayProxy(way.host.address, way.host.port, RTT_S) as proxy:
        yield [Way(way.host, way.host.through(proxy.port))]


def _here(stage: Stage) -> NixHere:
    assert stage.ground.nix is not None
    return stage.ground.nix


def _large(place: Path) -> None:
    large_file(place)


def _many(place: Path) -> None:
    place.mkdir()
    for number in range(FILES):
        (place / f"file {number:04}").write_bytes(os.urandom(FILE_BYTES))


def _added(stage: Stage, make: Callable[[Path], None]) -> str:
    """The store path here of what `make` makes; the same for all contestants of a run."""
    place = stage.ground.directory / f"nix-{make.__name__}"
    if not place.exists():
        make(place)
    return _here(stage).run("nix-store", "--add", str(place))


def _built(stage: Stage) -> str:
    flake = simple_flake(stage.directory / "flake", name="application", script=APPLICATION.partition("\n")[2])
    return _here(stage).build(f"path:{flake}#packages.{System.local()}.application")


def _empty(way: Way) -> None:
    """Take all paths out of the host's store."""
    base = shlex.quote(way.far)
    done = subprocess.run(way.host.ssh_argv(f"rm -rf {base}/base-*; nix-store --gc"), capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace"))


def _nix_copy(way: Way, path: str) -> list[str]:
    target = way.target
    options = ["-F", "/dev/null", "-o", "BatchMode=yes", "-i", str(target.identity_file), "-p", str(target.port)]
    options += [word for key, value in way.options.items() for word in ("-o", f"{key}={value}")]
    copy = [which("nix"), "copy", "--to", f"ssh://{target.user}@{target.host}", path]
    return ["env", f"NIX_SSHOPTS={' '.join(options)}", *copy]


def _pushes(make: Callable[[Path], None], *, again: bool) -> tuple[Contestant, ...]:
    def push(plan: Plan) -> Trial:
        return pushed(plan, "store", _added(plan.stage, make))

    def ours_ready(plan: Plan) -> None:
        if not again:
            _empty(plan.stage.ways[0])
            plan.disconnect()

    def copy(stage: Stage) -> Trial:
        return stage.measure([stage.job(stage.kept["argv"])])[0]

    def copy_ready(stage: Stage) -> None:
        (way,) = stage.ways
        first = "argv" not in stage.kept
        stage.kept["argv"] = _nix_copy(way, _added(stage, make))
        if not again:
            _empty(way)
        elif first:
            copy(stage)

    return (
        ours.warm(go=push, warm_up=push, ready=ours_ready, app=FLAKE),
        Contestant(_COPY, copy, copy_ready, _LACKS_COPY),
    )


def _instances(*, first: bool) -> tuple[Contestant, ...]:
    def lay_down(directory: Path) -> None:
        simple_flake(directory, name="application", script=APPLICATION.partition("\n")[2])

    def ready(plan: Plan) -> None:
        if first:
            _empty(plan.stage.ways[0])
            plan.disconnect()
        else:
            ours.run(plan)

    def script_go(stage: Stage) -> Trial:
        (way,), out = stage.ways, stage.kept["out"]
        crowd = Crowd([way])
        command = crowd.command("$far/outputs").replace(f"{way.far}/application", f"{out}/bin/application")
        return stage.measure(
            [stage.job(["sh", "-c", script(stage, way, command, copy=_nix_copy(way, out))])], starts=1
        )[0]

    def script_ready(stage: Stage) -> None:
        known = "out" in stage.kept
        if not known:
            stage.kept["out"] = _built(stage)
        if first:
            _empty(stage.ways[0])
        elif not known:
            script_go(stage)

    return (
        ours.warm(ready=ready, app=FLAKE, lay_down=lay_down),
        Contestant(_SCRIPT, script_go, script_ready, _LACKS_SCRIPT),
    )


def _like_nix_copy(name: str, title: str, make: Callable[[Path], None]) -> Work:
    bound = Bound("1.1 × `nix copy`", times=1.1, of=_COPY)
    return Work(
        name, f"push of {title} into a Nix store, connection included", _host, _pushes(make, again=False), (bound,)
    )


def _like_the_script(
    name: str, title: str, setting: Callable[[Ground], AbstractContextManager[Sequence[Way]]], *, first: bool
) -> Work:
    bound = Bound("less than the script", times=1.0, of=_SCRIPT)
    return Work(name, title, setting, _instances(first=first), (bound,))


WORKS = (
    _like_nix_copy("nix-push", "a path of 100 MB", _large),
    _like_nix_copy("nix-push-many", f"a path of {FILES:,} files of 4 KiB", _many),
    Work(
        "nix-push-again",
        "push of what is in the Nix store there, connection warm",
        _host,
        _pushes(_many, again=True),
        (Bound("0.1 s", plus=0.1),),
    ),
    _like_the_script("nix-first", "first instance with Nix", _host, first=True),
    _like_the_script("nix-second", "second instance with Nix", _host, first=False),
    _like_the_script("nix-far-first", "100 ms round trip, first instance with Nix", _far_host, first=True),
    _like_the_script("nix-far-second", "100 ms round trip, second instance with Nix", _far_host, first=False),
)
