"""Where cgroups are made, by what Linux says of its mounts; and one of our own, where it can be made."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.cgroups import Cgroup, NoCgroupError, Parents

VERSION_1 = """30 25 0:26 / /sys/fs/cgroup/cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
22 1 8:1 / / rw - ext4 /dev/sda rw
"""


def test_version_1_is_taken_where_its_controllers_are_mounted() -> None:
    found = Parents.find(VERSION_1, "3:cpu,cpuacct:/user\n4:memory:/user/deep\n0::/\n")
    memory = Path("/sys/fs/cgroup/memory/user/deep")
    assert found == Parents(1, Path("/sys/fs/cgroup/cpuacct/user"), memory)


def test_in_version_2_the_nearest_that_hands_memory_down_is_taken(tmp_path: Path) -> None:
    for place, controllers in (("", "cpu memory"), ("user", "cpu memory pids"), ("user/session", "")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "cgroup.subtree_control").write_text(f"{controllers}\n", encoding="ascii")
    mounts = f"32 25 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    assert Parents.find(mounts, "0::/user/session\n") == Parents(2, tmp_path / "user", tmp_path / "user")
    for place in ("", "user"):
        (tmp_path / place / "cgroup.subtree_control").write_text("cpu\n", encoding="ascii")
    with pytest.raises(NoCgroupError, match="memory"):
        Parents.find(mounts, "0::/user/session\n")


def test_without_cgroups_it_says_so() -> None:
    with pytest.raises(NoCgroupError, match="no cgroups"):
        Parents.find("22 1 8:1 / / rw - ext4 /dev/sda rw\n", "")


def test_a_cgroup_of_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n", encoding="ascii")
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 8192\nanon_thp 1\n", encoding="ascii")
    group = Cgroup(2, tmp_path, tmp_path)
    assert (group.cpu_s(), group.memory_bytes()) == (1.5, 4096)


def test_what_runs_in_one_is_counted_and_ended() -> None:
    try:
        with Cgroup.make("rr-test") as group:
            argv = ["sh", "-c", "read go; (while :; do :; done) & wait"]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True) as busy:
                try:
                    group.add(busy.pid)
                    assert busy.stdin is not None
                    busy.stdin.write(b"\n")
                    busy.stdin.flush()
                    until_s = time.monotonic() + 10
                    while group.cpu_s() < 0.05:
                        assert time.monotonic() < until_s, "its child's CPU time is not counted"
                        time.sleep(0.01)
                    assert len(group.pids()) == 2
                    assert group.pss_bytes() > 0
                    group.end()
                    assert group.pids() == []
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(busy.pid, signal.SIGKILL)
    except NoCgroupError as error:
        pytest.skip(str(error))
    assert not group.memory.exists()
