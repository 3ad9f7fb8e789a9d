"""Disks here that are full: the runtime directory's, the one of temporary directories, the outputs', all at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.runs import Machine, Outcome, Plan, localhost, single_words
from tests.needs import need


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that takes no byte more, though names."""
    need("netns")  # mounting
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "full", place], check=True)
    try:
        fill(place / "filling")
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def plan(tmp_path: Path, machine: Machine) -> Plan:
    return Plan.of_script(tmp_path / "plan", machine, "ok\n", [localhost(tmp_path / "base")])


@pytest.mark.parametrize("variable", ["REMOTE_RUNNER_RUNTIME_DIR", "TMPDIR"])
def test_a_run_needs_no_room_but_for_what_it_keeps(plan: Plan, full: Path, variable: str) -> None:
    """Notes and caches are left out."""
    environ = {variable: str(full)}
    Outcome.of(plan.fab(*single_words(), environ=environ)).all_ok()
    ran = plan.fab("run", "--host", "localhost", "--", "echo", "hello", environ=environ)
    assert (ran.status, ran.stdout) == (0, "hello\n"), str(ran)


def test_a_runtime_directory_without_room_for_a_name(plan: Plan, tmp_path: Path) -> None:
    need("netns")  # mounting
    (tmp_path / "full").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=0700", "full", tmp_path / "full"], check=True)
    try:
        ended = plan.fab(
            "local.single", "--testcase", "case", environ={"REMOTE_RUNNER_RUNTIME_DIR": f"{tmp_path}/full"}
        )
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "full"], check=True)
    assert ended.status == 1, str(ended)
    assert f"{tmp_path}/full/locks" in ended.stdout
    assert "next: " in ended.stdout
    assert "Traceback" not in str(ended)


def test_outputs_that_take_nothing_replace_no_result(plan: Plan, full: Path) -> None:
    """There are none; what we write of a run is told where it cannot be written."""
    ended = plan.fab("local.single", "--testcase", "case", "--outputs", str(full))
    assert "Traceback" not in str(ended)
    assert "group single: 1 of 1 ok" in ended.stdout
    assert f"{full}/" in ended.stderr
    assert "No space left on device" in ended.stderr


# Where all is on one disk: no place for temporary directories takes anything. The plan is what one stands in.
FAB = Path(sys.executable).parent / "fab"
NOWHERE = """
mount --bind "$1" "$1" && mount --bind plan plan && mount -o remount,bind,ro plan
for place in /tmp /var/tmp; do mount --rbind $place $place && mount -o remount,bind,ro $place; done
cd plan && shift && exec "$@"
"""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("local.single --testcase case --outputs ../outputs", 1, "next: set TMPDIR to a directory with room"),
        ("demo", 1, "next: set TMPDIR to a directory with room"),
        ("clean", 1, "cannot be removed: Read-only file system"),
    ],
)
def test_no_room_for_temporary_directories_anywhere(
    plan: Plan, tmp_path: Path, words: str, status: int, said: str
) -> None:
    need("netns")  # mounting
    runtime, base = tmp_path / "runtime", tmp_path / "base"
    environ = {**plan.machine.environ, "TMPDIR": "", "REMOTE_RUNNER_RUNTIME_DIR": str(runtime)}
    if words == "clean":  # has something to remove, by a run that was killed; out of reach of the tests beside this one
        gone = subprocess.Popen(["true"])
        gone.wait()
        (plan.directory / f"testground-{gone.pid}-abcd").mkdir()
        environ["TMPDIR"] = str(plan.directory)
    base.mkdir(mode=0o700)
    argv = ["unshare", "-m", "sh", "-ec", NOWHERE, "sh", str(tmp_path), str(FAB), *words.split()]
    ended = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.returncode == status, ended
    assert said in ended.stdout + ended.stderr
