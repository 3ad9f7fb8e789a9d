"""What is printed and kept of a run: no secret in it, and nothing that does something to a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testground.sync.service import SyncService
from tests.brokers_end import brokers
from tests.hosts import Keys, UserSshd
from tests.integration.failing import APPLICATION, FailingPlan
from tests.integration.runs import Machine, Plan, localhost
from tests.integration.ways import DIRECT, LAUNCHER, instance_argv
from tests.needs import need

SECRET = "s3cret'value-of-this-test"
HOSTILE = "\x1b]0;title\x07\x1b[2J\u009b31m"
SHOWN = r"\x1b]0;title\x07\x1b[2J\x9b31m"


def holds(directory: Path, word: bytes) -> list[str]:
    """The files below a directory that hold the word."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if word in path.read_bytes()]


def command_lines() -> set[bytes]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc (Linux)")
@pytest.mark.parametrize("way", [DIRECT, LAUNCHER])
def test_a_secret_is_in_no_command_line_no_message_and_no_file(
    failing_plan: FailingPlan, user_sshd: UserSshd, known_by_name: Callable[[UserSshd], str], way: str
) -> None:
    """Passed on from here to a host: the application has it, and nobody else sees it while it runs or afterwards."""
    name = known_by_name(user_sshd)
    failing_plan.host, failing_plan.hosts = name, f"  {name}: {{env: {{TOKEN: }}, secret_env: [TOKEN]}}\n"
    told = 'echo "${#TOKEN} characters" >"$TEST_OUTPUTS_PATH/length"; sleep 0.3\necho written'
    failing_plan.write_application(APPLICATION.replace("echo written", told))
    failing_plan.write_inventory()
    failing_plan.argv = instance_argv(failing_plan.directory, way)
    with SyncService() as service:
        process = failing_plan.start(failing_plan.environ(service.port, TOKEN=SECRET))
        seen = set[bytes]()
        while process.poll() is None:
            seen |= command_lines()
        ended = failing_plan.end(process)
    assert ended.status == 0, ended
    assert b"sleep\0" + b"0.3\0" in seen  # so the application was looked at while it ran
    assert not [line for line in seen if SECRET.encode() in line]
    assert SECRET not in ended.stdout + ended.stderr
    assert (failing_plan.outputs / "length").read_text() == f"{len(SECRET)} characters\n"
    for directory in (failing_plan.controller.runtime, failing_plan.controller.cache, failing_plan.directory):
        assert holds(directory, SECRET.encode()) == []
    assert SECRET not in user_sshd.log.read_text(errors="replace")
    (broker,) = brokers(failing_plan.controller.runtime)
    assert SECRET.encode() not in Path(f"/proc/{broker}/environ").read_bytes()
    assert re.search(r"Max core file size +0 ", Path(f"/proc/{broker}/limits").read_text(encoding="ascii"))


# Becomes a user whose own processes may look into it, and then what the broker makes of itself.
LOOKED_INTO = """
import ctypes, os
from remote_runner.broker.service import _keep_memory_private
os.setuid(4242)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
before = os.stat("/proc/self/environ").st_uid
_keep_memory_private()
print(before, os.stat("/proc/self/environ").st_uid)
"""


def test_no_other_process_of_the_user_looks_into_the_broker() -> None:
    """That it does so when it starts is seen above: with this goes its core file."""
    need("netns")  # only root becomes another user
    said = subprocess.run([sys.executable, "-c", LOOKED_INTO], stdout=subprocess.PIPE, check=True).stdout
    assert said.split() == [b"4242", b"0"]


def test_a_secret_in_the_words_of_a_build_is_masked(failing_plan: FailingPlan) -> None:
    failing_plan.hosts = "  localhost: {env: {TOKEN: }, secret_env: [TOKEN]}\n"
    failing_plan.command = "sh -c 'echo wrong token $TOKEN >&2; exit 4'"
    ended = failing_plan.run(TOKEN=SECRET)
    assert "wrong token ***" in ended.failure("ended with status 4")
    assert SECRET not in ended.stdout + ended.stderr
    assert SECRET not in json.dumps(failing_plan.record())
    assert "wrong token ***" in str(failing_plan.record()["error"])


def test_a_dry_run_masks_it(tmp_path: Path, machine: Machine) -> None:
    place = localhost(tmp_path / "base", env={"TOKEN": None, "SEEN": "seen"}, secret_env=["TOKEN"])
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [place])
    ended = plan.fab("run", "--host", "localhost", "--dry-run", "--", "echo", SECRET, environ={"TOKEN": SECRET})
    (planned,) = json.loads(ended.stdout)
    assert planned["environment"]["TOKEN"] == "***"
    assert planned["environment"]["SEEN"] == "seen"
    assert planned["argv"] == ["echo", "***"]
    assert SECRET not in ended.stdout + ended.stderr


def test_what_an_application_prints_does_nothing_to_the_terminal_of_a_run(tmp_path: Path, machine: Machine) -> None:
    script = f"""
printf '%s\\n' '{HOSTILE} line'
printf '%s\\n' '{HOSTILE} error' >&2
event message_event '"message":"\\u001b]0;title\\u0007\\u001b[2J\\u009b31m message"'
event failure_event '"group":"single","error":"\\u001b]0;title\\u0007\\u001b[2J\\u009b31m reason"'
"""
    plan = Plan.of_script(tmp_path / "plan", machine, script, [localhost(tmp_path / "base")])
    ended = plan.fab("local.single", "--testcase", "case")
    said = ended.stdout + ended.stderr
    for word in ("line", "error", "message", "reason"):
        assert f"{SHOWN} {word}" in said, said
    assert f"failed: {SHOWN} reason" in ended.stdout
    assert not set(said) & {"\x1b", "\x07", "\x9b"}
    as_json = plan.fab("local.single", "--testcase", "case", "--json").stdout
    assert not set(as_json) & {"\x1b", "\x07", "\x9b"}
    assert json.loads(as_json)[0]["instances"][0]["reason"] == f"{HOSTILE} reason"


def test_what_a_command_prints_under_fab_run_stays_byte_for_byte(tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [localhost(tmp_path / "base")])
    assert plan.fab("run", "--host", "localhost", "--", "printf", "%s", HOSTILE).stdout == HOSTILE


def test_what_a_host_says_does_nothing_to_a_terminal(
    failing_plan: FailingPlan, tmp_path: Path, keys: Keys, known_by_name: Callable[[UserSshd], str]
) -> None:
    force = f"ForceCommand printf '%s\\n' '{HOSTILE} there' >&2; exit 7"
    with UserSshd.start(tmp_path / "host", config=[force], keys=keys) as host:
        failing_plan.on(known_by_name(host))
        ended = failing_plan.run()
    assert "?]0;title??[2J?31m there" in ended.failure("status 7")
    assert "\\u001b" not in ended.stdout  # an event's text, which the daemon prints as it is
