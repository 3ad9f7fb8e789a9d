"""An artifact on its way to a host that does not have it, and to one that does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import ours, pushing
from benchmarks.ground import Ground, Way
from benchmarks.ours import Plan
from benchmarks.peers import Crowd, clush_argv, library, pssh_argv, pyinfra_argv, write_ssh_config
from benchmarks.rows.settings import far_away, one
from benchmarks.stage import Stage
from benchmarks.stand import Job
from benchmarks.work import Bound, Contestant, Trial, Work
from tests.hosts import which

SIZE_BYTES = 100_000_000
_PUSHING = Path(pushing.__file__)
_SCP = "`scp`"
_COPIES = "copies only: no name by content, half a copy may stay"


def pushed(plan: Plan, kind: str, what: str) -> dict[str, float]:
    """One push of `what` to the stage's host, measured."""
    (way,) = plan.stage.ways
    said = plan.stage.fresh("said")
    argv = [sys.executable, str(_PUSHING), way.host.name, kind, what]
    trial, _ = plan.stage.measure([Job(argv, plan.environ, plan.directory, said)])
    return {**trial, "wall_s": float(said.read_text(encoding="ascii"))}


def large_file(place: Path) -> None:
    """Write an executable file of 100 MB that nothing compresses."""
    with place.open("wb") as file:
        for _ in range(SIZE_BYTES // 1_000_000):
            file.write(os.urandom(1_000_000))
    place.chmod(0o755)


def _large(ground: Ground) -> Path:
    return ground.directory / "large"


def _with_large(
    hosts: Callable[[Ground], AbstractContextManager[Sequence[Way]]],
) -> Callable[[Ground], AbstractContextManager[Sequence[Way]]]:
    @contextmanager
    def setting(ground: Ground) -> Iterator[Sequence[Way]]:
        large_file(_large(ground))
        try:
            with hosts(ground) as ways:
                yield ways
        finally:
            _large(ground).unlink()

    return setting


def _push(plan: Plan) -> Trial:
    return pushed(plan, "content", str(_large(plan.stage.ground)))


def _copying(name: str, argv: Callable[[Stage, str, str], list[str]], *, again: bool) -> Contestant:
    def ready(stage: Stage) -> None:
        if not stage.kept:
            write_ssh_config(stage, stage.ways, masters=True)
            stage.kept["ready"] = True
        if not again:
            (stage.ways[0].near / "copy").unlink(missing_ok=True)

    def go(stage: Stage) -> Trial:
        (way,) = stage.ways
        trial, _ = stage.measure([stage.job(argv(stage, str(_large(stage.ground)), f"{way.far}/copy"))])
        if (way.near / "copy").stat().st_size != SIZE_BYTES:
            raise RuntimeError("not all of it came there")
        return trial

    return Contestant(name, go, ready, _COPIES)


def _scp(stage: Stage, near: str, far: str) -> list[str]:
    return [which("scp"), "-q", "-F", str(stage.directory / "ssh_config"), near, f"n000:{far}"]


def _clush(stage: Stage, near: str, far: str) -> list[str]:
    return [*clush_argv(stage, 1), "--copy", near, "--dest", far]


def _pssh(stage: Stage, near: str, far: str) -> list[str]:
    return [*pssh_argv(stage, 1, "parallel-scp"), near, far]


def _parallel_ssh(stage: Stage, near: str, far: str) -> list[str]:
    return library("parallel_ssh_run.py", tasks=Crowd(stage.ways).tasks, copy=[far, near], push=True)


def _pyinfra(stage: Stage, near: str, far: str) -> list[str]:
    return [*pyinfra_argv(stage, Crowd(stage.ways)), "files.put", f"src={near}", f"dest={far}"]


def _peers(*, again: bool) -> list[Contestant]:
    copies = {_SCP: _scp, "clush": _clush, "pssh": _pssh, "parallel-ssh": _parallel_ssh, "pyinfra": _pyinfra}
    return [_copying(name, argv, again=again) for name, argv in copies.items()]


WORKS = (
    Work(
        "push",
        "push of 100 MB by content, connection warm",
        _with_large(one),
        (ours.warm(go=_push, ready=Plan.forget_there), *_peers(again=False)),
        (Bound("1.1 × `scp`", times=1.1, of=_SCP),),
    ),
    Work(
        "push-far",
        "100 ms round trip, push of 100 MB by content, connection warm",
        _with_large(far_away),
        (ours.warm(go=_push, ready=Plan.forget_there), *_peers(again=False)),
        (Bound("1.25 × `scp`", times=1.25, of=_SCP),),
    ),
    Work(
        "push-again",
        "push of 100 MB that the host has, connection warm",
        _with_large(one),
        (ours.warm(go=_push, warm_up=_push, ready=lambda plan: None), *_peers(again=True)),
        (Bound("no session but that of the connection", "sessions", plus=1),),
    ),
)
