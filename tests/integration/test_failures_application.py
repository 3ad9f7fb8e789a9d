"""Applications that cannot be built, cannot be started or end badly: what failed, where, and what to do about it."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from testground.sync.service import SyncService
from tests.hosts import TestHost, UserSshd
from tests.integration.failing import APPLICATION, FailingPlan

Known = Callable[[TestHost], str]

WRITES = '#!/bin/sh\necho written >"$TEST_OUTPUTS_PATH/written"\n'


@pytest.fixture(params=["localhost", "usershost"])
def plan(request: pytest.FixtureRequest, failing_plan: FailingPlan, known_by_name: Known) -> FailingPlan:
    """The plan on this machine, and on one behind ssh."""
    if request.param == "usershost":
        host: UserSshd = request.getfixturevalue("user_sshd")
        failing_plan.on(known_by_name(host))
    return failing_plan


def elf(machine: int) -> bytes:
    """The beginning of a 64-bit little-endian ELF program for a machine (elf.h's EM_ numbers), and no more of it."""
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, 0, 64, 0, 0) + bytes(64)


# The build


def test_no_command_to_build_it(plan: FailingPlan) -> None:
    plan.command = None
    plan.run().failure("failing", "inventory.yaml has no app.command", "{out}")


def test_a_build_that_fails_shows_its_last_lines_and_its_log(plan: FailingPlan) -> None:
    plan.command = "sh -c 'echo the reason; echo more >&2; exit 3'"
    reason = plan.run().failure("build of failing for", "status 3", "| the reason", "| more", "log: ")
    log = reason.partition("log: ")[2].splitlines()[0]
    assert "the reason" in Path(log).read_text(encoding="utf-8")


def test_a_build_program_that_is_missing(plan: FailingPlan) -> None:
    plan.command = "no-such-compiler -o {out}"
    plan.run().failure("no-such-compiler", "No such file", "install no-such-compiler")


def test_a_build_that_makes_nothing(plan: FailingPlan) -> None:
    plan.command = "true {out}"
    plan.run().failure("succeeded, but", "is not there", "the command has to make {out}")


def test_a_build_that_takes_too_long(plan: FailingPlan) -> None:
    plan.command = "sleep 100"
    plan.timeouts["build_s"] = 0.5
    plan.run().failure("`sleep 100` did not end within 0.5 s", "timeouts.build_s")


# The start


def test_a_program_that_is_not_in_the_result(plan: FailingPlan) -> None:
    plan.command = 'sh -c \'mkdir "$0" && cp application "$0/other"\' {out}'
    plan.program = "bin/failing"
    plan.run().failure("bin/failing", "is not in the result", "app.program")


def test_a_folder_without_a_program_named(plan: FailingPlan) -> None:
    plan.command = 'sh -c \'mkdir "$0" && cp application "$0/other"\' {out}'
    plan.run().failure("it holds other", "set app.program in inventory.yaml")


def test_a_program_that_is_not_executable(plan: FailingPlan) -> None:
    plan.command = "install -m 644 application {out}"
    plan.run().failure("failing", "is not executable", "chmod +x")


@pytest.mark.skipif(os.uname().machine == "riscv64", reason="the foreign processor is this one's")
def test_a_program_for_another_processor(plan: FailingPlan) -> None:
    plan.write_application(elf(243))
    plan.run().failure(
        plan.host,
        "riscv64",
        f"which {plan.host} cannot run",
        f"build it for {plan.host}",
        "'system' in inventory.yaml may be wrong",
    )
    assert not plan.far_runs()


def test_a_program_whose_interpreter_is_missing(plan: FailingPlan) -> None:
    plan.write_application("#!/no/such/interpreter\n")
    plan.run().failure(plan.host, "/no/such/interpreter", "not there", "install what it needs")
    assert not plan.far_runs()


# The end


def test_a_script_with_windows_line_ends_is_called_one(plan: FailingPlan) -> None:
    plan.write_application("#!/bin/sh\r\nexit 0\r\n")
    plan.run().failure("Windows line ends (CRLF)", "perl -pi -e")


def test_a_program_killed_by_a_signal(plan: FailingPlan) -> None:
    plan.write_application(f"{WRITES}kill -KILL $$\n")
    ended = plan.run()
    ended.failure("SIGKILL", plan.host)
    assert (ended.outputs / "written").read_text() == "written\n"
    assert not plan.far_runs()


def test_an_exit_status_without_a_word(plan: FailingPlan) -> None:
    plan.write_application(f"{WRITES}echo last words >&2\nexit 3\n")
    ended = plan.run()
    ended.failure("exit status 3", "reported no failure event", plan.host)
    assert "last words" in ended.stderr
    assert (ended.outputs / "written").read_text() == "written\n"
    assert not plan.far_runs()


def test_its_own_failure_is_the_only_one(plan: FailingPlan) -> None:
    event = '{"ts":1,"msg":"","event":{"failure_event":{"group":"single","error":"mine"}}}'
    plan.write_application(f"{WRITES}echo '{event}'\nexit 1\n")
    ended = plan.run()
    assert (ended.status, ended.failures) == (1, ["mine"])
    assert (ended.outputs / "written").exists()
    assert not plan.far_runs()


def test_no_word_at_all_is_incomplete(plan: FailingPlan) -> None:
    plan.write_application(WRITES)
    ended = plan.run()
    assert ended.failures == []
    assert plan.record()["outcome"] == "incomplete"
    assert (ended.outputs / "written").exists()


def test_a_status_after_a_success_stays_a_success(plan: FailingPlan) -> None:
    plan.write_application(f"{APPLICATION}exit 5\n")
    ended = plan.run()
    assert (ended.status, ended.failures) == (0, [])
    assert any("succeeded and then ended with exit status 5" in message for message in ended.messages)


def test_an_application_that_runs_too_long(plan: FailingPlan) -> None:
    plan.write_application(f"{WRITES}exec sleep 100\n")
    plan.timeouts["run_s"] = 0.5
    ended = plan.run()
    ended.failure("timeouts.run_s", plan.host)
    assert (ended.outputs / "written").exists()
    assert not plan.far_runs()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_instance_that_is_ended_here_stops_the_application_there(plan: FailingPlan, number: signal.Signals) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 100\n")
    plan.write_inventory()
    with SyncService() as service:
        process = plan.start(plan.environ(service.port))
        assert process.stdout is not None
        said = b""
        while not said.endswith(b"ready\n"):
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(number)
        ended = plan.end(process)
    ended.failure("stopped", plan.host)
    assert (ended.outputs / "written").exists()
    assert not plan.far_runs()
