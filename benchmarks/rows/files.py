"""Output files on their way home."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import ours
from benchmarks.ground import Ground, Way
from benchmarks.ours import Instance, Plan
from benchmarks.peers import Crowd, clush_argv, library, pssh_argv, write_ssh_config
from benchmarks.stage import Stage
from benchmarks.work import Bound, Contestant, Trial, Work
from tests.hosts import which

FILES = 5_000
FILE_BYTES = 4096
LARGE_BYTES = 1_000_000_000
_TAR = "`ssh HOST tar \\| tar`"
_COPIES = "copies only"
_BOUND = Bound("1.2 × tar over ssh", times=1.2, of=_TAR)

CopyArgv = Callable[[Stage, str, Path], list[str]]
"""How a copy is started: from a folder there, to a folder here that exists."""


def _laid_down(count: int, size_bytes: int) -> Callable[[Ground], AbstractContextManager[Sequence[Way]]]:
    @contextmanager
    def setting(ground: Ground) -> Iterator[Sequence[Way]]:
        (way,) = ground.ways()
        folder = way.near / "files"
        folder.mkdir()
        try:
            for number in range(count):
                with (folder / f"file {number:04}.txt").open("wb") as file:
                    for start in range(0, size_bytes, 1 << 20):
                        file.write(os.urandom(min(1 << 20, size_bytes - start)))
            yield [way]
        finally:
            shutil.rmtree(folder)

    return setting


def _fetch(count: int) -> Callable[[Plan], Trial]:
    def check(instance: Instance) -> None:
        if sum(1 for _ in (instance.outputs / "files").iterdir()) != count:
            raise RuntimeError("not all files came home")

    def go(plan: Plan) -> Trial:
        trial = ours.run(plan, "files", check=check)
        return {**trial, "wall_s": trial["step_fetch_s"]}

    return go


def _copying(name: str, argv: CopyArgv, count: int) -> Contestant:
    def ready(stage: Stage) -> None:
        if not stage.kept:
            write_ssh_config(stage, stage.ways, masters=True)
            stage.kept["ready"] = True

    def go(stage: Stage) -> Trial:
        home = stage.fresh("home")
        home.mkdir()
        try:
            trial, _ = stage.measure([stage.job(argv(stage, f"{stage.ways[0].far}/files", home))])
            if sum(path.is_file() for path in home.rglob("*")) != count:
                raise RuntimeError("not all files came home")
        finally:
            shutil.rmtree(home, ignore_errors=True)
        return trial

    return Contestant(name, go, ready, _COPIES)


def _tar(stage: Stage, far: str, home: Path) -> list[str]:
    ssh = shlex.join([which("ssh"), "-F", str(stage.directory / "ssh_config"), "n000"])
    return ["sh", "-c", f"{ssh} tar -C {far} -cf - . | tar -C {home} -xf -"]


def _scp(stage: Stage, far: str, home: Path) -> list[str]:
    return [which("scp"), "-q", "-r", "-F", str(stage.directory / "ssh_config"), f"n000:{far}", f"{home}/"]


def _clush(stage: Stage, far: str, home: Path) -> list[str]:
    return [*clush_argv(stage, 1), "--rcopy", far, "--dest", str(home)]


def _pssh(stage: Stage, far: str, home: Path) -> list[str]:
    return [*pssh_argv(stage, 1, "parallel-slurp"), "-r", "-L", str(home), far, "files"]


def _parallel_ssh(stage: Stage, far: str, home: Path) -> list[str]:
    tasks = Crowd(stage.ways).tasks
    return library("parallel_ssh_run.py", tasks=tasks, copy=[far, str(home / "files")], push=False)


def _work(name: str, title: str, count: int, size_bytes: int) -> Work:
    peers_here = {
        _TAR: _tar,
        "`scp -r`": _scp,
        "clush": _clush,
        "pssh": _pssh,
        "parallel-ssh": _parallel_ssh,
    }
    return Work(
        name,
        title,
        _laid_down(count, size_bytes),
        (ours.warm(go=_fetch(count)), *(_copying(peer, argv, count) for peer, argv in peers_here.items())),
        (_BOUND,),
    )


WORKS = (
    _work("files", f"{FILES:,} output files of 4 KiB home (of an instance: the step fetch)", FILES, FILE_BYTES),
    _work("large-file", "one output file of 1 GB home (of an instance: the step fetch)", 1, LARGE_BYTES),
)
