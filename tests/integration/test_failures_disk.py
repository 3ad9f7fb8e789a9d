"""Disks that are full or take nothing, there and here, and archives that would write elsewhere."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.brokers_end import end_brokers
from tests.hosts_netns import NetnsHost
from tests.integration.failing import APPLICATION, SMALL_MIB, FailingPlan, event_bodies
from tests.integration.hostile_agent import put_hostile_agent
from tests.integration.runs import wait_for
from tests.needs import need


@pytest.fixture
def plan(failing_plan: FailingPlan, host: NetnsHost) -> FailingPlan:
    """The plan on t1, with everything of ours there on the small file system."""
    failing_plan.own_directory = False
    failing_plan.host, failing_plan.hosts = "t1", "  t1: {directory: /srv/rr}\n"
    return failing_plan


def fill(path: Path) -> None:
    """Make a file of all that its file system still takes."""
    with path.open("wb", buffering=0) as file:
        for _ in range(SMALL_MIB << 8):
            with suppress(OSError):
                file.write(bytes(1 << 12))
    assert os.statvfs(path.parent).f_bavail == 0


def is_clear_of_runs(place: Path) -> bool:
    """Whether no run and nothing half pushed is left below a base directory."""
    left = [*place.glob("rr/runs/*"), *place.glob("rr/artifacts/.tmp-*")]
    return not left


def test_a_disk_that_is_full_during_the_push(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    plan.write_application(APPLICATION.encode() + b"exit 0\n" + os.urandom(5 << 20))
    plan.run().failure("t1: there is no room for the artifact", "no space left", "inventory.yaml")
    assert is_clear_of_runs(small_disk)
    assert host.processes() == []


def test_a_disk_that_is_full_before_anything(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    fill(small_disk / "filling")
    plan.run().failure("t1: our program cannot be written there", "/srv/rr", "make room there")
    assert is_clear_of_runs(small_disk)


def test_a_disk_that_is_full_when_the_artifact_is_there_already(
    plan: FailingPlan, host: NetnsHost, small_disk: Path
) -> None:
    assert plan.run().status == 0
    fill(small_disk / "filling")
    plan.run().failure("t1: cannot make a run's directory", "no space left", "make room there")
    assert is_clear_of_runs(small_disk)
    assert host.processes() == []


def test_a_disk_that_becomes_full_during_the_run(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    script = '#!/bin/sh\necho first >"$TEST_OUTPUTS_PATH/first"\n'
    script += 'cat /dev/zero >"$TEST_OUTPUTS_PATH/filling" || exit 4\n'
    plan.write_application(script)
    ended = plan.run()
    ended.failure("t1: the application ended with exit status 4")
    assert "No space left" in ended.stderr
    assert (ended.outputs / "first").read_text() == "first\n"
    assert (ended.outputs / "filling").stat().st_size > 1 << 20
    assert is_clear_of_runs(small_disk)
    assert host.processes() == []


def test_a_file_system_that_is_read_only(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    _remount(host, "/srv", "ro")
    plan.run().failure("t1: no directory there will do", "/srv/rr", "Read-only file system", "`directory`")


def test_a_file_system_that_becomes_read_only_after_the_push(
    plan: FailingPlan, host: NetnsHost, small_disk: Path
) -> None:
    assert plan.run().status == 0
    end_brokers(plan.controller.runtime)  # and so the agent: a file system on which a file is open stays as it is
    wait_for(lambda: _is_remounted(host, "/srv", "ro"), 20)
    plan.run().failure("t1: ", "read-only file system", "directory")


def test_a_directory_in_which_no_program_starts(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    _remount(host, "/srv", "noexec")
    plan.run().failure("t1: no directory there will do", "/srv/rr", "noexec", "`directory` in inventory.yaml")


def test_a_directory_of_somebody_else(plan: FailingPlan, host: NetnsHost, small_disk: Path) -> None:
    (small_disk / "rr").mkdir(mode=0o700)
    os.chown(small_disk / "rr", 4242, 4242)
    plan.run().failure("t1: no directory there will do", "/srv/rr", "belongs to another user")


def _remount(host: NetnsHost, far: str, how: str) -> None:
    """Remount a file system in the host's own view of the file tree."""
    assert _is_remounted(host, far, how)


def _is_remounted(host: NetnsHost, far: str, how: str) -> bool:
    assert host.server is not None
    command = ["nsenter", "-t", str(host.server.pid), "-m", "mount", "-o", f"remount,bind,{how}", far]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


# Archives


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of entries as they are, sound or not."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def entry(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), b"escaped\n"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


@pytest.fixture
def escape_to(tmp_path: Path) -> Path:
    """Where the archives of these tests try to write: outside of the outputs."""
    return tmp_path / "escaped"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((entry("first"), entry("../../escaped")), ("'../../escaped'", "leads out by ..")),
        ((entry("first"), entry("{escape}")), ("is an absolute name",)),
        ((entry("first"), entry("a/../../../escaped")), ("leads out by ..",)),
        ((entry("first"), link("hard", "../../escaped", tarfile.LNKTYPE)), ("leads out by ..",)),
    ],
    ids=["dots", "absolute", "dots inside", "hard link"],
)
def test_an_archive_that_would_write_elsewhere(
    failing_plan: FailingPlan,
    escape_to: Path,
    entries: tuple[tuple[tarfile.TarInfo, bytes], ...],
    words: tuple[str, ...],
) -> None:
    for info, _ in entries:
        info.name = info.name.replace("{escape}", str(escape_to))
    put_hostile_agent(failing_plan.far, archive(*entries))
    ended = failing_plan.run()
    ended.failure("localhost: outputs: ", *words, "fab clean")
    assert (ended.outputs / "first").read_text() == "escaped\n"
    assert not escape_to.exists()
    assert not (failing_plan.directory / "escaped").exists()


def test_links_that_lead_out_are_left_out_and_not_followed(failing_plan: FailingPlan, escape_to: Path) -> None:
    escape_to.mkdir()
    put_hostile_agent(failing_plan.far, archive(link("out", str(escape_to)), entry("out/escaped")))
    ended = failing_plan.run()
    assert list(escape_to.iterdir()) == []
    assert any("out" in message and "left out" in message for message in ended.messages)
    assert not (ended.outputs / "out").is_symlink()


def test_an_archive_that_is_none(failing_plan: FailingPlan) -> None:
    put_hostile_agent(failing_plan.far, b"this is no archive" * 100)
    failing_plan.run().failure("localhost: outputs: the stream is damaged", "fab fetch")


# Here


def test_outputs_that_cannot_be_written_here(failing_plan: FailingPlan) -> None:
    need("netns")  # mounting
    failing_plan.write_application(APPLICATION)
    subprocess.run(["mount", "--bind", failing_plan.outputs, failing_plan.outputs], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", failing_plan.outputs], check=True)
        ended = failing_plan.run()
    finally:
        subprocess.run(["umount", failing_plan.outputs], check=True)
    ended.failure(str(failing_plan.outputs), "Read-only file system", "fab fetch")
    assert failing_plan.far_runs()  # kept there for fab fetch


def test_outputs_that_do_not_fit_here(failing_plan: FailingPlan) -> None:
    need("netns")  # mounting
    failing_plan.write_application(
        '#!/bin/sh\necho first >"$TEST_OUTPUTS_PATH/a first"\nhead -c 3000000 /dev/zero >"$TEST_OUTPUTS_PATH/large"\n'
    )
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", failing_plan.outputs], check=True)
    try:
        ended = failing_plan.run()
    finally:
        subprocess.run(["umount", failing_plan.outputs], check=True)
    ended.failure("localhost: outputs: ", "large", "No space left on device", "make room", "fab fetch")
    (kept,) = failing_plan.far_runs()
    assert (failing_plan.far / "runs" / kept / "outputs" / "large").stat().st_size == 3000000


def test_a_long_line_that_does_not_fit_here(failing_plan: FailingPlan) -> None:
    need("netns")  # mounting
    failing_plan.write_application(
        '#!/bin/sh\necho first >"$TEST_OUTPUTS_PATH/first"\nhead -c 3000000 /dev/zero | tr "\\0" x\necho\n'
    )
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", failing_plan.outputs], check=True)
    try:
        ended = failing_plan.run()
    finally:
        subprocess.run(["umount", failing_plan.outputs], check=True)
    ended.failure("remote-runner.stdout.lines", "No space left on device", "make room", "fab fetch")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system here in which there are directories, and room for nothing."""
    need("netns")  # mounting
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "full", place], check=True)
    try:
        with suppress(OSError), (place / "filled").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("variable", ["REMOTE_RUNNER_CACHE_DIR", "TEST_OUTPUTS_PATH"])
def test_a_full_disk_here_names_the_place_and_what_to_do(failing_plan: FailingPlan, full: Path, variable: str) -> None:
    failing_plan.write_application(APPLICATION)
    ended = failing_plan.run(**{variable: str(full)})
    assert "crash_event" not in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    ended.failure(str(full), "No space left on device", "next: ")


def test_what_cannot_be_removed_there_replaces_no_result(failing_plan: FailingPlan) -> None:
    need("netns")  # mounting
    failing_plan.write_application(APPLICATION.replace("#!/bin/sh", '#!/bin/sh\nmount -t tmpfs none "$TEST_TEMP_PATH"'))
    ended = failing_plan.run()
    (left,) = failing_plan.far_runs()
    subprocess.run(["umount", failing_plan.far / "runs" / left / "tmp"], check=True)
    assert ended.status == 0, ended
    (words,) = [message for message in ended.messages if message.startswith("clean: ")]
    assert "cannot be removed there" in words
    assert f"fab clean -H localhost --run {left}" in words
    assert failing_plan.record()["outcome"] == "ok"


def test_an_outputs_directory_that_is_a_file(failing_plan: FailingPlan) -> None:
    failing_plan.outputs.rmdir()
    failing_plan.outputs.write_text("in the way\n")
    ended = failing_plan.run()
    ended.failure(str(failing_plan.outputs))
    assert event_bodies(ended.stdout)


def test_a_runtime_directory_that_cannot_be_made(failing_plan: FailingPlan) -> None:
    in_the_way = failing_plan.directory / "file"
    in_the_way.touch()
    failing_plan.run(REMOTE_RUNNER_RUNTIME_DIR=str(in_the_way / "runtime")).failure(
        str(in_the_way / "runtime"), "REMOTE_RUNNER_RUNTIME_DIR"
    )


def test_a_runtime_directory_that_is_too_long_for_sockets(
    failing_plan: FailingPlan, host: NetnsHost, tmp_path: Path
) -> None:
    """No broker can listen there; nothing else needs a socket."""
    failing_plan.own_directory = False
    failing_plan.on("t1")
    ended = failing_plan.run(REMOTE_RUNNER_RUNTIME_DIR=str(tmp_path / ("long" * 30)))
    assert ended.status == 0, ended
    assert "so it runs by itself" in ended.messages[0]
    assert "path too long" in ended.messages[0]
