"""Every task of `fab` with something wrong: one message on stderr, exit status 1, nothing on stdout, no traceback."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.hosts import free_port
from tests.manifests import manifest
from tests.tasks.fab import ONE_LINE_FABFILE, PlanDirectory, Ran

PARAMS = '[testcases.params.times]\ntype = "int"\ndefault = 3\n'
HOSTS = """\
  localhost: {directory: NEAR}
  dex: {ssh: {host: 127.0.0.1, port: PORT}, labels: [lab]}
  rex: {ssh: {host: 127.0.0.1, port: PORT}}
"""
COMPOSITION = """\
[global]
plan = "greeter"
case = "greet"
builder = "exec:go"
runner = "local:exec"
total_instances = 1
[[groups]]
id = "a"
instances = { count = 1 }
"""


@pytest.fixture
def plan(tmp_path: Path, controller: Controller) -> PlanDirectory:
    """A plan whose `dex` and `rex` refuse every connection."""
    directory = tmp_path / "plan"
    directory.mkdir()
    made = PlanDirectory(directory)
    made.write("fabfile.py", ONE_LINE_FABFILE)
    made.write("manifest.toml", manifest("greeter", "greet", most=5, default=2, params=PARAMS))
    made.write("greeter.sh", "#!/bin/sh\nexit 0\n").chmod(0o755)
    made.inventory(_inventory(tmp_path))
    return made


def _inventory(tmp_path: Path, hosts: str = HOSTS) -> str:
    text = hosts.replace("NEAR", str(tmp_path / "near")).replace("PORT", str(free_port()))
    return 'app: {name: greeter, command: "cp greeter.sh {out}"}\nhosts:\n' + text


def refused(ran: Ran, *words: str) -> None:
    """What every refusal is like."""
    said = f"{ran.out}\n{ran.words}"
    assert "Traceback" not in said, said
    assert ran.status == 1, said
    assert ran.out == "", said
    assert ran.words.strip(), said
    for word in words:
        assert word in ran.words, f"{word!r} is not in: {ran.words}"


# What was typed, and words of the message.
TYPED: list[tuple[str, tuple[str, ...]]] = [
    # options that are none, lack their value or have an odd one
    ("choose --instances", ("instances",)),
    ("choose --instances x", ("--instances", "'x'", "whole number")),
    ("choose --instances 0", ("--instances", "'0'")),
    ("choose --instances -3", ("instances",)),
    ("choose", ("--instances",)),
    ("choose --instances 2 --group a=1", ("--instances and --group",)),
    ("choose --group a", ("--group", "NAME=COUNT")),
    ("choose --group a=x", ("--group", "'x'")),
    ("choose --no-such-option", ("--no-such-option",)),
    ("choose --instances 2 --remote-runners [{", ("remote-runners", "character")),
    ("choose --instances 2 --remote-runners {}", ("remote-runners", "a list of hosts")),
    ("build --arch pdp11", ("'pdp11'", "x86_64-linux")),
    ("build --host nobody*", ("'nobody*'", "matches")),
    ("push", ("--host NAME", "localhost, dex, rex")),
    ("push --host", ("host",)),
    ("push --host=", ("host",)),
    ("push --host @nolab", ("'@nolab'", "label", "@lab")),
    ("push --host localhost --arch pdp11", ("'pdp11'",)),
    ("push --host localhost --artifact /no/such/file", ("/no/such/file", "nothing is there")),
    ("run", ("behind --", "fab run --host")),
    ("run --host localhost", ("behind --", "fab run --host")),
    ("run -- true", ("--host NAME",)),
    ("run --host nobody* -- true", ("'nobody*'",)),
    ("fetch", ("--run ID",)),
    ("fetch --run no-such-run --host localhost", ("no-such-run", "fab clean --dry-run")),
    ("hosts --host nobody*", ("'nobody*'",)),
    ("hosts.login", ("--host NAME",)),
    ("hosts.login --host localhost", ("localhost is this machine",)),
    ("local.single", ("--testcase", "greet")),
    ("local.single --testcase grete", ("'grete'", "greet")),
    ("local.single --testcase greet --instances x", ("--instances", "'x'")),
    ("local.single --testcase greet --instances 6", ("6", "5")),
    ("local.single --testcase greet --test-param times", ("--test-param", "NAME=VALUE")),
    ("local.single --testcase greet --sync-service 5050", ("--sync-service", "HOST:PORT")),
    ("local.single --testcase greet --sync-service localhost:x", ("--sync-service", "HOST:PORT")),
    ("local.single --testcase greet --sync-service localhost:" + "9" * 5000, ("--sync-service", "HOST:PORT")),
    ("local.single --testcase greet --timeout soon", ("--timeout", "'soon'")),
    ("local.single --testcase greet --timeout 999999999999999999", ("--timeout", "at most 2000000")),
    ("local.single --testcase greet --timeout " + "9" * 5000, ("--timeout", "'999")),
    ("report " + "9" * 5000, ("'999", "File name too long")),
    ("local.composition --file no-such-file.toml", ("no-such-file.toml",)),
    ("local.composition --file broken.toml", ("broken.toml",)),
    ("local.composition --run-ids nothing", ("nothing",)),
    ("local.sync-service --port x", ("--port", "'x'")),
    ("local.sync-service --port " + "9" * 5000, ("--port", "'999")),
    ("local.sync-service --port 70000", ("--port", "'70000'")),
    ("demo --instances x", ("--instances", "'x'")),
    ("demo --testcase nothing", ("nothing",)),
    ("clean --no-such-option", ("--no-such-option",)),
    ("clean --host nobody*", ("'nobody*'",)),
    ("no-such-task", ("no-such-task",)),
    # hosts that no host can be
    ("push --host -oProxyCommand=x", ("-oProxyCommand",)),
    ("push --host=-oProxyCommand=x", ("-oProxyCommand=x", "start with '-'")),
    ("push --host=a;b", ("';'",)),
    ("run --host=-x -- true", ("'-x'", "start with '-'")),
    ("hosts --host=-x", ("'-x'", "start with '-'")),
    ("-H=-oProxyCommand=x push", ("-oProxyCommand=x", "start with '-'")),
    # -H where no host is used
    ("-H dex choose --instances 2", ("choose", "leave -H out")),
    ("-H dex local.single --testcase greet", ("leave -H out",)),
    ("-H dex instance", ("leave -H out",)),
    ("choose --instances 2 -- true", ("takes no command",)),
    # hosts that refuse
    ("push --host dex", ("dex: the machine answers, but nothing listens at its ssh port",)),
    ("-H dex push", ("dex: the machine answers, but nothing listens at its ssh port",)),
    ("run --host dex -- true", ("dex: the machine answers",)),
    ("hosts.login --host dex", ("Connection refused", "dex: the machine answers, but nothing listens", "next: ")),
    ("fetch --run some-run --host dex", ("dex: the machine answers",)),
    ("clean --host dex", ("dex: the machine answers",)),
    ("push --host dex --host rex", ("dex: the machine", "rex: the machine", "2 of 2 hosts failed: dex, rex")),
]


@pytest.mark.parametrize(("line", "words"), TYPED, ids=[line[:80] for line, _ in TYPED])
def test_what_is_typed_wrong_is_told_in_a_message(plan: PlanDirectory, line: str, words: tuple[str, ...]) -> None:
    plan.write("broken.toml", "[global\n")
    plan.write("composition.toml", COMPOSITION)
    refused(plan.fab(*line.split(" ")), *words)


@pytest.mark.parametrize("name", ["a b", "a\nb", "", " "])
@pytest.mark.parametrize("words", [("push", "--host"), ("-H",)])
def test_a_host_name_that_no_host_can_have(plan: PlanDirectory, words: tuple[str, ...], name: str) -> None:
    behind = () if words[0] == "push" else ("push",)
    refused(plan.fab(*words, name, *behind), "host")


@pytest.mark.parametrize("name", ["dez", "rexx"])
def test_a_name_that_nothing_resolves_gets_the_nearest(plan: PlanDirectory, name: str) -> None:
    near = "dex" if name == "dez" else "rex"
    # A search domain of this machine must not make a host of it.
    refused(plan.fab("push", "--host", f"{name}.invalid"), f"{name}.invalid", "does not resolve")
    refused(plan.fab("push", "--host", name), f"'{name}'", near)


INVENTORIES: list[tuple[str, tuple[str, ...]]] = [
    ("hosts: [\n", ("inventory.yaml:1", "bracket")),
    ("hosts:\n\tdex:\n", ("inventory.yaml:2", "a tab")),
    ("hostss:\n  dex:\n", ("inventory.yaml:1: hostss", "did you mean hosts")),
    ("hosts:\n  dex:\n    slotz: 3\n", ("inventory.yaml:3: hosts.dex.slotz", "did you mean slots")),
    ("hosts:\n  dex: {slots: many}\n", ("inventory.yaml:2: hosts.dex.slots", "'many'", "whole number")),
    ("hosts:\n  -x:\n", ("inventory.yaml:2", "'-x'", "start with '-'")),
    ("- dex\n", ("inventory.yaml:1", "a mapping")),
    ("app: {command: 'cp {uot}'}\n", ("inventory.yaml:1: app.command", "uot")),
    ("hosts:\n  dex:\n  dex:\n", ("inventory.yaml:3: hosts.dex", "line 2")),
    ("defaults: {directory: relative}\n", ("inventory.yaml:1: defaults.directory", "'relative'")),
]


@pytest.mark.parametrize(("text", "words"), INVENTORIES, ids=[text for text, _ in INVENTORIES])
def test_an_inventory_error_names_file_line_and_key(plan: PlanDirectory, text: str, words: tuple[str, ...]) -> None:
    plan.inventory(text)
    refused(plan.fab("hosts"), *words)


@pytest.mark.parametrize(
    "line",
    ["choose --instances 1", "build", "push --host x", "run --host x -- true", "fetch --run x", "hosts", "clean"],
)
def test_every_task_that_reads_it_tells_of_a_bad_inventory(plan: PlanDirectory, line: str) -> None:
    plan.inventory("hosts:\n  dex: {slotz: 1}\n")
    refused(plan.fab(*line.split()), "inventory.yaml:2: hosts.dex.slotz", "did you mean slots")


def test_an_inventory_that_is_no_text(plan: PlanDirectory) -> None:
    (plan.path / "inventory.yaml").write_bytes(b"hosts: \xff\xfe\n")
    refused(plan.fab("hosts"), "inventory.yaml", "UTF-8")


@pytest.mark.parametrize("line", ["local.single --testcase greet", "local.composition"])
def test_a_missing_manifest(plan: PlanDirectory, line: str) -> None:
    (plan.path / "manifest.toml").unlink()
    plan.write("composition.toml", COMPOSITION)
    refused(plan.fab(*line.split()), "manifest.toml")


def test_a_broken_manifest(plan: PlanDirectory) -> None:
    plan.write("manifest.toml", 'name = "greeter\n')
    refused(plan.fab("local.single", "--testcase", "greet"), "manifest.toml", "line 1")


def test_an_unknown_group_of_a_composition(plan: PlanDirectory) -> None:
    runs = '[[runs]]\nid = "one"\n[[runs.groups]]\nid = "b"\ninstances = { count = 1 }\n'
    plan.write("composition.toml", COMPOSITION.replace("total_instances = 1\n", "") + runs)
    refused(plan.fab("local.composition"), "composition.toml", "'b'")
    assert not (plan.path / "outputs").exists()


def test_an_unknown_case_of_a_composition(plan: PlanDirectory) -> None:
    plan.write("composition.toml", COMPOSITION.replace('greet"', 'grete"'))
    refused(plan.fab("local.composition"), "'grete'", "greet")
    assert not (plan.path / "outputs").exists()


def test_an_unknown_case_starts_nothing(plan: PlanDirectory) -> None:
    ran = plan.fab("local.single", "--testcase", "grete")
    refused(ran, "'grete'", "greet")
    assert not (plan.path / "outputs").exists()


def test_an_instance_without_an_environment(plan: PlanDirectory) -> None:
    ran = plan.fab("instance")
    assert ran.status == 1
    assert "Traceback" not in ran.out + ran.words
    reason = json.loads(ran.out)["event"]["failure_event"]["error"]
    assert "TEST_PLAN is not set" in reason
    assert "next: " in reason


def test_a_build_that_fails(plan: PlanDirectory) -> None:
    plan.inventory("app: {name: greeter, command: \"sh -c 'echo the reason; exit 3'\"}\n")
    refused(plan.fab("build"), "the reason", "status 3", "log: ")


def test_no_command_to_build(plan: PlanDirectory) -> None:
    plan.inventory("app: {name: greeter}\n")
    refused(plan.fab("build"), "inventory.yaml has no app.command", "next: ")


def test_a_program_that_is_not_there(plan: PlanDirectory) -> None:
    refused(
        plan.fab("run", "--host", "localhost", "--", "no-such-program"), "localhost", "no-such-program", "not there"
    )


def test_outputs_that_cannot_be_written(plan: PlanDirectory) -> None:
    (plan.path / "in the way").touch()
    ran = plan.fab("local.single", "--testcase", "greet", "--outputs", "in the way")
    refused(ran, "in the way")


def test_a_sync_service_port_that_is_taken(plan: PlanDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(plan.fab("local.sync-service", "--port", str(port)), str(port))
