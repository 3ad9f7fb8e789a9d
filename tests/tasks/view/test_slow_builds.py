from __future__ import annotations

import queue
from pathlib import Path

import pytest

from remote_runner.progress import Building, Built
from tasks.view.slow_builds import SlowBuilds


def test_a_build_that_takes_long_is_told_once_and_one_that_does_not_never() -> None:
    said: queue.Queue[str] = queue.Queue()
    builds = SlowBuilds(said.put, after_s=0.2)
    builds.tell(Building("quick", "x86_64-linux", Path("/quick.log")))
    builds.tell(Built("quick", "x86_64-linux"))
    builds.tell(Building("slow", "x86_64-linux", Path("/slow.log")))
    assert said.get(timeout=30) == "slow for x86_64-linux is still being built; what its build says: /slow.log"
    builds.tell(Built("slow", "x86_64-linux"))
    builds.tell(Building("stopped", "x86_64-linux", Path("/stopped.log")))
    builds.end()
    with pytest.raises(queue.Empty):
        said.get(timeout=0.5)
