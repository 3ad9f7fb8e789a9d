"""What applications print, on its way to a reader here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import ours, peers
from benchmarks.ground import Ground, Way
from benchmarks.work import Bound, Work

LINES_BYTES = 500_000_000
LINE_BYTES = 200_000_000
TOGETHER = 10
_SHARE = 0.8
_TEXT = b"a plain line of an application's output, about as long as lines usually are %09d\n"
_RATE = Bound("80 % of the rate of `ssh`", times=1 / _SHARE, of=peers.SSH)
_ALONE = Bound("85 % of the rate of `ssh`", times=1 / 0.85, of=peers.SSH)
# Those that pass output on as it comes; pyinfra and mitogen hold all of it back.
_PASS_ON = (peers.SSH, "script", "Fabric", "clush", "pssh", "parallel-ssh")
_FAST = (peers.SSH, "script", "pssh")  # the others need most of a minute for one stream of as much


def _lines(size_bytes: int) -> Iterator[bytes]:
    at_once = 10_000
    for first in range(0, size_bytes // len(_TEXT % 0), at_once):
        yield b"".join(_TEXT % number for number in range(first, first + at_once))


def _line(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes // 1_000_000):
        yield b"x" * 1_000_000
    yield b"\n"


def _printing(
    case: str, content: Callable[[int], Iterator[bytes]], size_bytes: int
) -> Callable[[Ground], AbstractContextManager[Sequence[Way]]]:
    @contextmanager
    def setting(ground: Ground) -> Iterator[Sequence[Way]]:
        (way,) = ground.ways()
        file: Path = way.near / case
        with file.open("wb") as out:
            out.writelines(content(size_bytes))
        try:
            yield [way]
        finally:
            file.unlink()

    return setting


def _flat(megabytes: int) -> Bound:
    return Bound(f"{megabytes} MB here", "memory_here_bytes", plus=megabytes * 1e6)


WORKS = (
    Work(
        "stream",
        "500 MB of lines on stdout",
        _printing("lines", _lines, LINES_BYTES),
        (
            ours.warm(go=partial(ours.run, case="lines", drained=True)),
            *peers.contestants(_PASS_ON, case="lines", warm=True),
        ),
        (_ALONE, _flat(64)),
    ),
    Work(
        "streams-together",
        "10 instances at once, each printing 50 MB of lines",
        _printing("lines", _lines, LINES_BYTES // TOGETHER),
        (
            ours.warm(
                go=partial(ours.run, case="lines", count=TOGETHER, drained=True),
                warm_up=partial(ours.run, count=TOGETHER),
                slots=TOGETHER,
            ),
            *peers.contestants(_FAST, case="lines", count=TOGETHER, warm=True),
        ),
        (_RATE, Bound("none fails", "failed"), _flat(64)),
    ),
    Work(
        "one-line",
        "one line of 200 MB on stdout",
        _printing("line", _line, LINE_BYTES),
        (
            ours.warm(go=partial(ours.run, case="line", drained=True)),
            *peers.contestants([peers.SSH], case="line", warm=True),
        ),
        (_RATE, _flat(64)),
    ),
)
