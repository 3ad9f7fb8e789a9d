"""What an application may do, the same on every kind of host (this machine, the embedded ssh server, real sshds) and
however its instance was started.

One run for each host has a group of one instance for each behaviour; a test looks at what came of its group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from remote_runner.demo.server import DemoHost
from remote_runner.outputs import STREAM_FILES
from testground.sync.service import SyncService
from tests.hosts import Keys, UserSshd
from tests.hosts_netns import NetnsHost
from tests.integration.runs import (
    ROOT,
    Machine,
    Outcome,
    Place,
    Plan,
    demo_place,
    localhost,
    nothing_left,
    place_on,
    single_words,
)
from tests.integration.ways import WAYS, let_fab_start_by
from tests.needs import need

LONG = 300_000
# The application: what each group does.
BEHAVIOURS = r"""
cd "$TEST_OUTPUTS_PATH"
long() { head -c 300000 /dev/zero | tr '\0' "$1"; }
case $TEST_GROUP_ID in
nothing) ok ;;
names)
    mkdir -p .settings 'empty folder' 'a folder/deep er'
    echo dot >.hidden
    echo dotted >.settings/.inner
    echo spaces >'a folder/deep er/a name  with spaces '
    echo newline >'two
lines'
    echo option >./-rf
    echo quotes >"it's \"quoted\" \$(here)"
    printf '\000\377\n' >binary
    printf '#!/bin/sh\n' >program
    chmod 750 program
    ln -s .hidden 'a link'
    ln -s '../../two
lines' 'a folder/deep er/up'
    ln -s 'a folder' 'folder link'
    ln -s nowhere dangling
    ok ;;
silent) echo here >written ;;
binary)
    printf '\000\001\377\376 no line end'
    printf '\r\n\000\033[31m\n'
    printf '\377\000' >&2
    ok ;;
closed)
    ok
    exec >&-
    echo after >after ;;
unfinished) printf %s "$(ok)" ;;
child)
    sleep 1000 &
    echo $! >child
    ok ;;
long)
    long x
    echo
    ok ;;
event)
    event message_event "\"message\":\"$(long y)\""
    ok ;;
status)
    ok
    exit 7 ;;
service)
    python3 - "$SYNC_SERVICE_HOST" "$SYNC_SERVICE_PORT" >answer <<'END'
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as service:
    service.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    print(service.recv(4096).split(b"\r\n")[0].decode())
END
    ok ;;
elsewhere)
    for path in CONTROLLER; do
        [ -e "$path" ] && echo "$path" >>seen
    done
    pwd -P >where
    ok ;;
esac
"""
GROUPS = (
    *("nothing", "names", "silent", "binary", "closed", "unfinished", "child", "long", "event", "status"),
    *("service", "elsewhere"),
)


@dataclass(frozen=True)
class Ran:
    """A place, and the run of all behaviours there."""

    place: Place
    outcome: Outcome
    controller: Path

    def group(self, name: str) -> dict[str, str]:
        """The names in a group's outputs but for the runner's own, with what each file says."""
        outputs = self.outcome.group(name).outputs
        found = {}
        for path in outputs.rglob("*"):
            inside = str(path.relative_to(outputs))
            if not inside.startswith("remote-runner") and inside not in STREAM_FILES:
                is_text = path.is_file() and not path.is_symlink()
                found[inside] = path.read_text(encoding="latin-1") if is_text else ""
        return found

    def ok(self, name: str) -> bool:
        """Whether the instance succeeded without a word of the runner against it."""
        instance = self.outcome.group(name)
        return instance.verdict == "ok" and instance.record["outcome"] == "ok" and not instance.record["error"]

    def said(self, name: str) -> list[str]:
        """The lines that `fab` printed about an instance."""
        return [line for line in self.outcome.ended.stderr.splitlines() if f" {name}[000] " in line]


def make_place(kind: str, directory: Path, stack: ExitStack, request: pytest.FixtureRequest) -> Place:
    """A host of that kind, running until the stack is unwound."""
    slots = len(GROUPS)
    if kind == "localhost":
        return localhost(directory / "far", slots=slots)
    need("ssh")
    if kind == "demo":
        return demo_place(stack.enter_context(DemoHost(directory / "demo")), slots=slots)
    keys: Keys = request.getfixturevalue("keys")
    if kind == "sshd":
        host = stack.enter_context(UserSshd.start(directory / "sshd", keys=keys))
        return place_on(host, directory / "far", slots=slots)
    need("netns")
    # What the controller has is mounted over there, and the user there is nobody's.
    empty = directory / "empty"
    empty.mkdir()
    hidden = {str(ROOT): empty, str(directory / "controller"): empty}
    lan = request.getfixturevalue("lan")
    netns = NetnsHost.start(lan, directory / "t1", name="t1", keys=keys, binds=hidden, ordinary_user=True)
    return place_on(stack.enter_context(netns), slots=slots)


KINDS = ("localhost", "demo", "sshd", "netns")


@pytest.fixture(scope="module", params=[(kind, way) for way in WAYS for kind in KINDS], ids="-".join)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The run on one kind of host, its instances started in one way."""
    kind, way = request.param
    directory = tmp_path_factory.mktemp(kind)
    controller = directory / "controller"
    controller.mkdir()
    with ExitStack() as stack:
        place = make_place(kind, directory, stack, request)
        machine = stack.enter_context(Machine.made(controller / "machine"))
        hidden = f"'{ROOT}/pyproject.toml' '{controller}/plan' '{controller}/machine/cache'"
        script = BEHAVIOURS.replace("CONTROLLER", hidden)
        plan = Plan.of_script(controller / "plan", machine, script, [place])
        let_fab_start_by(plan.directory, way)
        yield Ran(place, plan.groups(dict.fromkeys(GROUPS, 1)), controller)


def test_everything_else_is_as_it_was(ran: Ran) -> None:
    verdicts = {instance.group: instance.verdict for instance in ran.outcome.instances}
    assert verdicts == {**dict.fromkeys(GROUPS, "ok"), "silent": "incomplete"}, str(ran.outcome.ended)
    assert ran.outcome.ended.status == 1
    assert "Traceback" not in ran.outcome.ended.stderr
    assert "no warm process" not in ran.outcome.ended.stderr
    assert {instance.host for instance in ran.outcome.instances} == {ran.place.name}
    nothing_left(ran.outcome.run, [ran.place])


def test_no_outputs_at_all(ran: Ran) -> None:
    assert ran.ok("nothing")
    assert ran.group("nothing") == {}
    assert ran.outcome.group("nothing").record["outputs_files"] == 0


def test_names_and_links_come_home_as_they_are(ran: Ran) -> None:
    assert ran.ok("names")
    assert ran.group("names") == {
        ".hidden": "dot\n",
        ".settings": "",
        ".settings/.inner": "dotted\n",
        "empty folder": "",
        "a folder": "",
        "a folder/deep er": "",
        "a folder/deep er/a name  with spaces ": "spaces\n",
        "a folder/deep er/up": "",
        "two\nlines": "newline\n",
        "-rf": "option\n",
        'it\'s "quoted" $(here)': "quotes\n",
        "binary": "\x00\xff\n",
        "program": "#!/bin/sh\n",
        "a link": "",
        "folder link": "",
        "dangling": "",
    }
    outputs = ran.outcome.group("names").outputs
    links = {"a link": ".hidden", "folder link": "a folder", "dangling": "nowhere"}
    assert {name: str((outputs / name).readlink()) for name in links} == links
    assert (outputs / "a folder" / "deep er" / "up").read_text() == "newline\n"
    assert (outputs / "program").stat().st_mode & 0o777 == 0o750
    assert ran.outcome.group("names").record["left_out"] == []


def test_a_silent_application_is_incomplete_and_its_outputs_are_here(ran: Ran) -> None:
    instance = ran.outcome.group("silent")
    assert instance.verdict == instance.record["outcome"] == "incomplete"
    assert instance.record["exit_status"] == 0
    assert ran.group("silent") == {"written": "here\n"}


def test_an_application_may_print_binary(ran: Ran) -> None:
    assert ran.ok("binary")


def test_an_application_may_close_its_stdout_early(ran: Ran) -> None:
    assert ran.ok("closed")
    assert ran.group("closed") == {"after": "after\n"}


def test_a_last_line_without_newline_counts(ran: Ran) -> None:
    assert ran.ok("unfinished")


def test_a_child_that_holds_stdout_is_ended_and_told(ran: Ran) -> None:
    assert ran.ok("child")
    assert ran.outcome.group("child").record["stopped_processes"] == 1
    assert any("stopped 1 process that outlived the application" in line for line in ran.said("child"))


def test_a_long_line_is_shortened_and_stands_whole_in_a_file(ran: Ran) -> None:
    assert ran.ok("long")
    instance = ran.outcome.group("long")
    assert instance.record["long_lines"] == 1
    assert (instance.outputs / "remote-runner.stdout.lines").read_bytes() == b"x" * LONG + b"\n"
    (shown,) = [line for line in ran.said("long") if "xxx" in line]
    assert 50_000 < len(shown) < 65_536


def test_a_long_event_stays_an_event(ran: Ran) -> None:
    assert ran.ok("event")
    instance = ran.outcome.group("event")
    (shown,) = [line for line in ran.said("event") if "yyy" in line]
    assert " MESSAGE " in shown.replace("\t", " ")
    assert len(shown) < 65_536
    whole = (instance.outputs / "remote-runner.stdout.lines").read_bytes()
    assert b'"message":"' + b"y" * LONG + b'"' in whole


def test_an_exit_status_after_a_success_is_only_told(ran: Ran) -> None:
    assert ran.ok("status")
    assert ran.outcome.group("status").record["exit_status"] == 7
    assert any("succeeded and then ended with exit status 7" in line for line in ran.said("status"))


def test_the_services_are_reached(ran: Ran) -> None:
    assert ran.ok("service")
    assert ran.group("service")["answer"].startswith("HTTP/1.1 4")


def test_the_application_runs_elsewhere(ran: Ran) -> None:
    assert ran.ok("elsewhere")
    where = Path(ran.group("elsewhere")["where"].strip())
    assert where.name == "outputs"
    if ran.place.name == "t1":
        # Neither the artifact's nor the outputs' path of the controller exists there.
        assert "seen" not in ran.group("elsewhere")
        assert str(where).startswith("/home/tester/.cache/remote-runner/runs/")
    else:
        assert where.is_relative_to(ran.place.base.resolve())


@pytest.mark.parametrize("kind", ["localhost", "demo"])
def test_the_near_end_of_a_service_is_on_any_port(
    kind: str, tmp_path: Path, machine: Machine, request: pytest.FixtureRequest
) -> None:
    with ExitStack() as stack:
        place = make_place(kind, tmp_path, stack, request)
        first, second = (stack.enter_context(SyncService()) for _ in range(2))
        script = BEHAVIOURS.replace("$TEST_GROUP_ID in", "service in")
        plan = Plan.of_script(tmp_path / "plan", machine, script, [place])
        for service in (first, second):
            outcome = Outcome.of(plan.fab(*single_words(), f"--sync-service=127.0.0.1:{service.port}")).all_ok()
            assert outcome.instances[0].text("answer").startswith("HTTP/1.1 4")
            assert f"-> 127.0.0.1:{service.port}" in outcome.instances[0].step("forward")["detail"]


def test_the_summary_tells_what_was_left_out_of_the_outputs(tmp_path: Path, machine: Machine) -> None:
    script = 'cd "$TEST_OUTPUTS_PATH"; for n in 1 2 3 4 5 6; do mkfifo pipe$n; done; ok'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [localhost(tmp_path / "base")])
    done = plan.fab("local.single", "--testcase", "case", "--instances", "1")
    (line,) = (line for line in f"{done.stdout}{done.stderr}".splitlines() if line.startswith("single[000]: left out"))
    assert "pipe1" in line
    assert line.endswith("; and 1 more")
    (record,) = plan.directory.glob("outputs/local_exec/script/*/single/0/remote-runner.json")
    assert sorted(json.loads(record.read_text())["left_out"]) == [f"pipe{n}: is a named pipe" for n in range(1, 7)]
