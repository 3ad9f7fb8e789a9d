"""The view as a person sees it, in a terminal of its own; and that there is none where nobody could read it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contrast import assert_readable
from tests.hosts_netns import NetnsHost
from tests.integration.runs import Machine, Plan, localhost, nothing_left, place_on, read_until, wait_for
from tests.integration.runs import ended as end_of
from tests.needs import need
from tests.tmux import Tmux

FAB = Path(sys.executable).parent / "fab"
# Says a line, and goes on until the file is there.
WAITS = """
echo "hello from $REMOTE_RUNNER_NUMBER"
while [ ! -e {go} ]; do sleep 0.1; done
[ $REMOTE_RUNNER_NUMBER != 2 ] || {{ event failure_event '"group":"single","error":"no route"'; exit 1; }}
ok
"""
BUILD = "sh -c 'echo compiling; until [ -e {built} ]; do sleep 0.1; done; cp application \"$0\"' {{out}}"


@contextmanager
def terminal(tmp_path: Path, width: int, machine: Machine, plan: Plan) -> Iterator[Tmux]:
    need("tmux")
    with Tmux.started(machine.runtime, width, 24, machine.environ, plan.directory) as tmux:
        yield tmux


def waiting_plan(tmp_path: Path, machine: Machine) -> Plan:
    script = WAITS.format(go=tmp_path / "go")
    place = localhost(tmp_path / "far", grace_s=1)
    return Plan.of_script(tmp_path / "plan", machine, script, [place], command=BUILD.format(built=tmp_path / "built"))


@pytest.mark.parametrize(("width", "instances"), [(80, 2), (140, 30)])
def test_a_run_from_its_build_to_its_summary(width: int, instances: int, tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    with terminal(tmp_path, width, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case --instances {instances}; echo status $?")
        building = tmux.wait_for(
            lambda screen: "building application for" in screen and "application: compiling" in screen
        )
        assert f"{instances} waiting  0 running  0 ok  0 failed  case, run " in building

        assert_readable(tmux.screen(colours=True), 1)
        (tmp_path / "built").touch()
        is_running = f"0 waiting  {instances} running"
        running = tmux.wait_for(lambda screen: is_running in screen and "hello from" in screen)
        counted = re.search(r"localhost +· +(\d+) +· +· +\d:\d\d  run$", running, re.MULTILINE)
        assert counted, running
        assert int(counted[1]) == instances
        assert re.search(r"^ +\d+\.\ds single\[0\d\d\] hello from \d+$", running, re.MULTILINE), running
        assert "choose:" not in running
        assert_readable(tmux.screen(colours=True), 2)

        (tmp_path / "go").touch()
        ended = tmux.wait_for(lambda screen: "status 1" in screen)
        assert_readable(tmux.screen(colours=True), 2)
    assert f"group single: {instances - 1} of {instances} ok" in ended
    assert "no route" in ended
    assert "waiting" not in ended, "the view is taken away"
    assert all(len(line) <= width for line in ended.splitlines())


def test_a_host_whose_artifact_is_being_built_is_not_done(
    tmp_path: Path, machine: Machine, netns_host: NetnsHost
) -> None:
    hosts = [localhost(tmp_path / "far"), place_on(netns_host)]
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", hosts, command=BUILD.format(built=tmp_path / "built"))
    with terminal(tmp_path, 80, machine, plan) as tmux:
        tmux.type(f"{FAB} push --host '*'; echo status $?")
        tmux.wait_for(
            lambda screen: re.search(r"^t1 +\d:\d\d  build$", screen, re.MULTILINE) and "2 running  0 ok" in screen
        )
        (tmp_path / "built").touch()
        tmux.wait_for(lambda screen: "status 0" in screen)


def test_a_message_is_broken_between_words(tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    with terminal(tmp_path, 40, machine, plan) as tmux:
        tmux.type(f"{FAB} push; echo status $?")
        screen = tmux.wait_for(lambda screen: "status 1" in screen)
    assert "name a host: --host NAME, a glob or\n  @label (the inventory has localhost)\n" in screen


def test_a_host_that_does_not_answer_yet(tmp_path: Path, machine: Machine, netns_host: NetnsHost) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [place_on(netns_host)])
    netns_host.dropping()
    with terminal(tmp_path, 80, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case; echo status $?")
        tmux.wait_for(lambda screen: re.search(r"^t1 +1 .* connect$", screen, re.MULTILINE))
        netns_host.passing()
        tmux.wait_for(lambda screen: "status 0" in screen)


def test_what_is_fetched_has_a_rate_and_a_time_left(tmp_path: Path, machine: Machine, netns_host: NetnsHost) -> None:
    script = 'head -c 4000000 /dev/urandom >"$TEST_OUTPUTS_PATH/much"; ok\n'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place_on(netns_host)])
    netns_host.slow_down(8)
    with terminal(tmp_path, 80, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case; echo status $?")
        tmux.wait_for(lambda screen: re.search(r"fetch \d\.\d MiB \d+%, \d+ KiB/s, 0:0\d left", screen))
        tmux.wait_for(lambda screen: "status 0" in screen)


def test_ctrl_c_at_the_terminal(tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    (tmp_path / "built").touch()
    with terminal(tmp_path, 80, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case --instances 3; echo status $?")
        tmux.wait_for(lambda screen: "3 running" in screen)
        tmux.press("C-c")
        screen = tmux.wait_for(lambda screen: "status 130" in screen, scrolled=True)
    assert "stopping 3 instances and fetching what they wrote; Ctrl-C again kills" in screen
    assert "what its instances had written is here" in " ".join(screen.split())
    (run,) = (plan.directory / "outputs" / "local_exec" / "script").iterdir()
    nothing_left(run.name, [localhost(tmp_path / "far")])


@pytest.mark.parametrize("words", ["--plain", "--quiet"])
def test_nothing_is_drawn_for_who_wants_none(words: str, tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    (tmp_path / "built").touch()
    (tmp_path / "go").touch()
    with terminal(tmp_path, 80, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case {words}; echo status $?")
        screen = tmux.wait_for(lambda screen: "status 0" in screen, scrolled=True)
    assert "group single: 1 of 1 ok" in screen
    assert ("OTHER << single[000] >> hello from 1" in screen) == (words == "--plain")


def test_a_pipe_gets_lines_and_no_control_characters(tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    (tmp_path / "built").touch()
    (tmp_path / "go").touch()
    environ = {"TERM": "xterm-256color"}
    usual = plan.fab("local.single", "--testcase", "case", "--instances", "3", environ=environ)
    assert usual.status == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", usual.stdout + usual.stderr)
    assert usual.stderr.count("OTHER << single") == 3
    assert usual.stderr.count("FAIL << single") == 1
    assert "choose:" not in usual.stderr
    assert "START" not in usual.stderr
    steps = plan.fab("local.single", "--testcase", "case", "-v").stderr
    assert all(f"{step}: " in steps for step in ("choose", "build", "push", "forward", "run", "fetch", "clean"))
    quiet = plan.fab("local.single", "--testcase", "case", "-q")
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("instance ")


def test_what_many_say_in_the_same_way_is_told_once(tmp_path: Path, machine: Machine) -> None:
    script = 'echo line; event failure_event \'"group":"single","error":"no route to $REMOTE_RUNNER_HOST"\'; exit 1\n'
    script = script.replace("$REMOTE_RUNNER_HOST", "'$REMOTE_RUNNER_HOST'")
    plan = Plan.of_script(tmp_path / "plan", machine, script, [localhost(tmp_path / "far", slots=2)])
    done = plan.fab("local.single", "--testcase", "case", "--instances", "5")
    assert done.stderr.count("FAIL") == 1
    assert done.stderr.count("more instances than slots") == 1
    assert "5 instances on localhost failed: no route to localhost\n  single[000-004]\n" in done.stdout


def test_the_view_costs_little(tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    (tmp_path / "built").touch()
    with terminal(tmp_path, 140, machine, plan) as tmux:
        tmux.type(f"{FAB} local.single --testcase case --instances 20 & echo pid $!; wait")
        screen = tmux.wait_for(lambda screen: "20 running" in screen, scrolled=True)
        found = re.search(r"pid (\d+)", screen)
        assert found
        pid = int(found[1])
        before_s = cpu_s(pid)
        lasted_s = wait_for(lambda: "0:04  0 waiting" in tmux.screen() or "0:05  " in tmux.screen(), 30)
        used_s = cpu_s(pid) - before_s
        os.kill(pid, signal.SIGTERM)
        tmux.wait_for(lambda screen: "outputs:" in screen)
    assert used_s < 0.15 * max(1.0, lasted_s), f"{used_s:.2f} s of CPU in {lasted_s:.1f} s"


def cpu_s(pid: int) -> float:
    """What a process has used of a processor until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_pushed_stop_ends_with_its_signal(tmp_path: Path, machine: Machine) -> None:
    plan = waiting_plan(tmp_path, machine)
    (tmp_path / "built").touch()
    fab = plan.start("local.single", "--testcase", "case")
    read_until(fab, "hello from 1")
    os.kill(fab.pid, signal.SIGTERM)
    assert end_of(fab).status == 128 + signal.SIGTERM
