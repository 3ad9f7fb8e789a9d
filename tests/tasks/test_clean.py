"""`fab clean`: what is left goes, what is alive stays, and `--dry-run` says before what will happen."""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.connection.bootstrap.program import identity
from remote_runner.controller import Controller
from remote_runner.plan_import import ASIDE
from tasks.clean import _Found, _shown
from tests.hosts import UserSshd
from tests.needs import need
from tests.tasks.fab import PlanDirectory

LEAVE = ("sh", "-c", 'echo kept >"$TEST_OUTPUTS_PATH/file"')


def kept_run(plan: PlanDirectory, host: str = "dex") -> str:
    """The id of a run by hand that is over and has left its directory."""
    run: str = plan.ok("run", "--host", host, "--keep", "--json", "--", *LEAVE).data[0]["run"]
    return run


def cleaned(plan: PlanDirectory, *words: str) -> list[tuple[str, str, str]]:
    """Host, name and outcome of what `fab clean --json` tells of things on hosts."""
    data: list[dict[str, Any]] = plan.ok("clean", "--json", *words).data
    return [(one["host"], one["name"], one["outcome"]) for one in data if one["host"]]


def test_why_a_run_could_not_be_removed_is_told(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    need("netns")  # for a mount
    run = kept_run(hosts_plan)
    outputs = tmp_path / "dex/runs" / run / "outputs"
    subprocess.run(["mount", "--bind", outputs, outputs], check=True)
    try:
        ran = hosts_plan.fab("clean", "--host", "dex")
    finally:
        subprocess.run(["umount", outputs], check=True)
    assert ran.status != 0
    assert f"dex: {outputs.parent} cannot be removed: " in ran.words
    assert "device or resource busy" in ran.words
    assert cleaned(hosts_plan) == [("dex", run, "removed")]


def test_what_cannot_be_read_there_is_told_and_not_taken_for_nothing(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    shut, other = kept_run(hosts_plan), kept_run(hosts_plan, "rex")
    place = tmp_path / "dex/runs" / shut
    (place / "record").rename(tmp_path / "record")
    (place / "record").mkdir()
    ran = hosts_plan.fab("clean", "--json")
    assert ran.status == 1
    assert {(one["name"], one["outcome"]) for one in ran.data if one["host"]} == {(shut, "failed"), (other, "removed")}
    why = "its record cannot be read, so it may be alive: is no file"
    assert f"dex: {place} stays: {why}\n  next: fab clean --force" in ran.words
    hosts_plan.ok("-H", "dex", "push")
    kept = hosts_plan.fab("clean", "--host", "dex", "--cache")
    assert (kept.status, f"{place}/record cannot be read: is no file" in kept.words) == (1, True)
    assert list((tmp_path / "dex/artifacts").glob("[!.]*"))
    assert cleaned(hosts_plan, "--run", shut, "--force") == [("dex", shut, "removed")]

    runs = tmp_path / "dex/runs"
    runs.rmdir()
    runs.symlink_to("runs")
    for words in (("clean",), ("clean", "--dry-run"), ("fetch", "--host", "dex", "--run", shut)):
        ran = hosts_plan.fab(*words)
        assert ran.status == 1, words
        assert f"dex: {runs} cannot be read: too many levels of symbolic links\n  next: make it readable" in ran.words
        assert "nothing is left" not in ran.words
        assert "no host has" not in ran.words


def test_why_something_here_stays_is_told(plan: PlanDirectory, controller: Controller, temporary: Path) -> None:
    need("netns")  # for a mount
    held, closed = controller.cache / "builds/held/key", controller.cache / "builds/closed/key"
    for path in (held, closed):
        path.mkdir(parents=True)
        (path / "file").write_text("x")
        path.chmod(0)
        aged(path.parent, 7200.0)
    systems = controller.runtime / "systems"
    systems.symlink_to("systems")
    subprocess.run(["mount", "--bind", held, held], check=True)
    try:
        ran = plan.fab("clean", "--json")
        fixing = plan.fab("doctor", "--fix", "--json")
    finally:
        subprocess.run(["umount", held], check=True)
    assert ran.status == 1
    outcomes = {one["place"]: one["outcome"] for one in ran.data}
    assert [outcomes[str(path)] for path in (held.parent, closed.parent, systems)] == ["failed", "removed", "failed"]
    assert re.search(f"{held.parent} cannot be removed: .*: Device or resource busy\n  next: see what", ran.words)
    assert f"{systems} cannot be read: Too many levels of symbolic links\n  next: see what" in ran.words
    assert "nothing is left" not in ran.words
    (leftovers,) = (one for one in fixing.data if one["check"] == "leftovers")
    assert leftovers["outcome"] == "warn"
    assert f"{held.parent} cannot be removed: " in leftovers["found"]
    assert not closed.exists()


@pytest.fixture
def alive(hosts_plan: PlanDirectory, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A run on dex that goes on until the test's end: its id, and the `fab` that waits for it."""
    os.mkfifo(tmp_path / "never")
    process = hosts_plan.start("-H", "dex", "run", "--", "sh", "-c", f"echo started; read word <{tmp_path}/never")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"started\n"
    yield process.stderr.readline().split()[1].decode(), process
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_dry_run_tells_what_then_happens(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    first, second = kept_run(hosts_plan), kept_run(hosts_plan, "rex")
    assert cleaned(hosts_plan, "--dry-run") == [
        ("dex", first, "would be removed"),
        ("rex", second, "would be removed"),
    ]
    assert (tmp_path / "dex/runs" / first / "outputs/file").exists()
    assert cleaned(hosts_plan) == [("dex", first, "removed"), ("rex", second, "removed")]
    assert not list(tmp_path.glob("[dr]ex/runs/*"))
    again = hosts_plan.ok("clean", "--host", "@lab")
    assert (again.out, again.words) == ("", "nothing is left of earlier runs\n")


def test_the_instances_of_a_run_on_a_host_have_a_row() -> None:
    killed = [_Found("dex", "run", f"r1-single-{n}", f"/runs/{n}", 9.0 + n, 100, "removed") for n in range(200)]
    other = _Found("dex", "run", "r2-single-0", "/runs/r2", 5.0, 1, "removed")
    rows = _shown([other, *killed, replace(killed[0], host="fir")])
    assert [(one.host, one.name, one.age_s, one.size_bytes) for one in rows] == [
        ("dex", "r2-single-0", 5.0, 1),
        ("dex", "r1: 200 instances", 208.0, 20_000),
        ("fir", "r1-single-0", 9.0, 100),
    ]


def test_the_table_names_run_command_and_size(hosts_plan: PlanDirectory) -> None:
    run = kept_run(hosts_plan)
    ran = hosts_plan.ok("clean", "--dry-run")
    header, row, *rest = ran.out.splitlines()
    assert header.split() == ["where", "what", "name", "of", "age", "size", "outcome"]
    assert row.split()[:4] == ["dex", "run", run, "sh"]
    assert row.endswith("would be removed")
    assert not rest
    assert "1 would be removed" in ran.words


def test_only_the_named_run_and_host_are_touched(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    first, second, third = kept_run(hosts_plan), kept_run(hosts_plan), kept_run(hosts_plan, "rex")
    assert cleaned(hosts_plan, "--run", second) == [("dex", second, "removed")]
    assert cleaned(hosts_plan, "--host", "rex") == [("rex", third, "removed")]
    assert [path.name for path in tmp_path.glob("[dr]ex/runs/*")] == [first]
    unknown = hosts_plan.fab("clean", "--run", second)
    assert (unknown.status, unknown.out) == (1, "")
    assert f"no host has run {second}" in unknown.words


def test_older_than_keeps_what_is_younger(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    young, old = kept_run(hosts_plan), kept_run(hosts_plan)
    record = tmp_path / "dex/runs" / old / "record"
    os.utime(record, (time.time() - 7300,) * 2)
    assert cleaned(hosts_plan, "--older-than", "2h") == [("dex", old, "removed")]
    assert [path.name for path in tmp_path.glob("dex/runs/*")] == [young]


@pytest.mark.parametrize("given", ["2", "h", "2 h", "-1h", "2w"])
def test_an_odd_age_is_refused(plan: PlanDirectory, given: str) -> None:
    ran = plan.fab("clean", f"--older-than={given}")
    assert (ran.status, ran.words) == (1, f"--older-than is {given!r}; expected a number and s, m, h or d, like 2h\n")


def test_what_is_alive_stays_unless_forced(
    hosts_plan: PlanDirectory, alive: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    run, process = alive
    over = kept_run(hosts_plan)
    found = {(name, outcome) for _, name, outcome in cleaned(hosts_plan)}
    assert found == {(run, "alive"), (over, "removed")}
    refused = hosts_plan.fab("clean", "--run", run)
    assert refused.status == 1
    assert "1 run is alive and stays; --force ends and removes them:\n  1 of sh, started by " in refused.words
    assert f"@{platform.node()}:{hosts_plan.path}\n" in refused.words
    assert (tmp_path / "dex/runs" / run).exists()
    assert process.poll() is None
    assert cleaned(hosts_plan, "--run", run, "--force") == [("dex", run, "removed")]
    assert process.wait(60) != 0
    assert not (tmp_path / "dex/runs" / run).exists()


def test_a_run_whose_machine_went_down_is_found_by_its_record(
    hosts_plan: PlanDirectory, alive: tuple[str, subprocess.Popen[bytes]], user_sshd: UserSshd, tmp_path: Path
) -> None:
    run, process = alive
    user_sshd.kill()  # with everything below it, as a power cut would
    assert process.wait(60) != 0
    user_sshd.boot()
    assert cleaned(hosts_plan) == [("dex", run, "removed")]


def test_the_cache_goes_only_when_asked(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    hosts_plan.ok("-H", "dex", "push")
    (artifact,) = (tmp_path / "dex/artifacts").glob("[!.]*")
    assert cleaned(hosts_plan) == []
    assert cleaned(hosts_plan, "--cache", "--dry-run") == [("dex", artifact.name, "would be removed")]
    assert cleaned(hosts_plan, "--cache", "--older-than", "1h") == []
    assert cleaned(hosts_plan, "--cache") == [("dex", artifact.name, "removed")]
    assert not artifact.exists()
    assert "sent" in hosts_plan.ok("-H", "dex", "push").words


def test_a_host_that_does_not_answer_stops_no_other(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    run = kept_run(hosts_plan)
    gone = "  gone:\n    ssh: {host: 127.0.0.1, port: 1}\n"
    inventory = (hosts_plan.path / "inventory.yaml").read_text()
    hosts_plan.inventory(inventory + gone)
    ran = hosts_plan.fab("clean", "--json")
    assert ran.status == 1
    assert [(one["name"], one["outcome"]) for one in ran.data if one["host"]] == [(run, "removed")]
    assert "1 of 4 hosts failed: gone" in ran.words


def aged(path: Path, age_s: float) -> Path:
    """The file (made where it is not) or directory, last changed that long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def dead_socket(path: Path) -> Path:
    """A socket there on which nobody listens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """A socket there on which somebody listens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        yield
    path.unlink()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made in this test."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def test_old_files_here_go_and_what_is_used_stays(plan: PlanDirectory, controller: Controller, temporary: Path) -> None:
    hour_s = 3600.0
    cache, runtime = controller.cache, controller.runtime
    for name in ("builds/old/key", "builds/new/key", "agents/0123456789abcdef", f"agents/{identity()}"):
        (cache / name).mkdir(parents=True)
    gone_process = subprocess.Popen(["true"])
    gone_process.wait()
    gone = [
        aged(cache / "builds/old", 2 * hour_s),
        aged(cache / "agents/0123456789abcdef", 2 * hour_s),
        aged(cache / "inventory.yaml.00000000.json", 2 * hour_s),
        aged(cache / "runs/old.json", 31 * 24 * hour_s),
        aged(runtime / "systems/0123", 25 * hour_s),
        aged(runtime / f"ssh-{gone_process.pid}-0123abcd.log", 0.0),
        aged(runtime / "pushed/0123-4567", 0.0),
        aged(runtime / "0123456789ab-0.log", 0.0),
        aged(runtime / "locks/free", 2 * hour_s),
        dead_socket(runtime / "0123456789ab-0"),
        dead_socket(runtime / "login-0123"),
        dead_socket(runtime / "warm/4567"),
    ]
    stays = [
        cache / "builds/new",
        aged(cache / f"agents/{identity()}", 2 * hour_s),
        aged(cache / "runs/new.json", 2 * hour_s),
        aged(runtime / f"ssh-{os.getpid()}-0123abcd.log", 0.0),
        aged(runtime / "locks/held", 2 * hour_s),
    ]
    with controller.lock("held"), listening(runtime / "login-89ab"):
        told = plan.ok("clean", "--dry-run", "--json").data
        assert {one["place"] for one in told} == {str(path) for path in gone}
        assert all(os.path.lexists(path) for path in gone)
        plan.ok("clean")
    assert not [path for path in gone if os.path.lexists(path)]
    assert all(path.exists() for path in stays)


def test_a_broker_that_takes_instances_stays_and_a_dead_one_goes(plan: PlanDirectory, controller: Controller) -> None:
    broker = controller.runtime / "broker"
    gone = [dead_socket(broker / "dead"), *(aged(broker / name, 0.0) for name in ("dead.log", "lost.log", "lost.new"))]
    stays = [broker / "alive", *(aged(broker / name, 0.0) for name in ("alive.log", "starting.log"))]
    with listening(stays[0]), controller.lock("broker-starting"):
        told = plan.ok("clean", "--dry-run", "--json").data
        assert {one["place"] for one in told if one["kind"] == "dead broker"} == {*map(str, gone), str(stays[2])}
        refused = plan.fab("clean", "--json")
        assert [one["place"] for one in refused.data if one["outcome"] == "failed"] == [str(stays[2])]
    assert not [path for path in gone if os.path.lexists(path)]
    assert all(path.exists() for path in stays[1:])


def test_temporary_directories_of_killed_processes_go(
    plan: PlanDirectory, controller: Controller, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "testground home"
    monkeypatch.setenv("TESTGROUND_HOME", str(home))
    gone_process = subprocess.Popen(["true"])
    gone_process.wait()
    gone = [temporary / f"testground-{gone_process.pid}-abcd", temporary / "testground123"]
    gone += [temporary / f"remote-runner-demo-{gone_process.pid}-abcd"]
    stays = [temporary / name for name in (f"testground-{os.getpid()}-abcd", "testground456", "testground789", "other")]
    stays += [temporary / f"remote-runner-demo-{os.getpid()}-abcd", temporary / f"testground-{'9' * 200}-abcd"]
    for path in (*gone, *stays):
        path.mkdir()
        (path / "file").write_text("x")
        aged(path, 120.0)
    for name in ("question-abcd", "asking-abcd", "salloc-abcd", "template/new.abcd"):
        for path, age_h in ((controller.cache / name, 25), (controller.cache / f"{name}e", 1)):
            path.mkdir(parents=True)
            (gone if age_h == 25 else stays).append(aged(path, age_h * 3600.0))
    for name, age_h in ((f"{ASIDE}greeter-abcd", 25), (f"{ASIDE}greeter-efgh", 1), ("greeter", 25)):
        (home / "plans" / name / "old").mkdir(parents=True)
        (gone if age_h == 25 and name != "greeter" else stays).append(aged(home / "plans" / name, age_h * 3600.0))
    aged(stays[2], 0.0)
    user = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], "TEST_TEMP_PATH": str(stays[1])})
    try:
        told = plan.ok("clean", "--json").data
    finally:
        user.kill()
        user.wait()
    assert {one["place"] for one in told if one["kind"] == "temporary directory"} == {str(path) for path in gone}
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in stays)
