"""`fab runs*`: what is told of runs whose records are here, by their ids, or the beginning of one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.records.places import chosen_id, note_place
from remote_runner.records.run import RunRecord
from remote_runner.secrets import Secrets
from tasks.collection import ns
from tasks.command_line.executor import with_bare_words
from tasks.command_line.task import Failed
from tasks.runs.listing import short_ids
from tasks.runs.logs import instance_name, shown_line
from tests.needs import need
from tests.tasks.conftest import APP
from tests.tasks.fab import PlanDirectory
from tests.tasks.local_runs import run_directory, write_plan

IDS = ["dc5leodoueueqh5saajg", "dc5leodoaaaaqh5saajg", "dc5lu8tnlnmou1brqueg"]


def run_once(plan: PlanDirectory, *words: str) -> str:
    """Run the plan's case; the id of the run."""
    ran = plan.fab("local.single", "--testcase", "greet", "--json", *words)
    return str(ran.data[0]["run"])


def test_ids_are_shortened_as_far_as_they_stay_different() -> None:
    assert short_ids(IDS) == {IDS[0]: "dc5leodou", IDS[1]: "dc5leodoa", IDS[2]: "dc5lu8tn"}
    for full, short in short_ids(IDS).items():
        assert chosen_id(IDS, short) == full


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("runs.show abc --json", "runs.show --id abc --json"),
        ("runs.logs --instance single[3] abc -f", "runs.logs --instance single[3] --id abc -f"),
        ("runs.remove abc abd", "runs.remove --id abc --id abd"),
        ("runs.show runs.logs", "runs.show runs.logs"),
        ("init sh clean runs", "init --language sh --name clean runs"),
        ("fetch --run abc", "fetch --run abc"),
        ("unknown abc", "unknown abc"),
    ],
)
def test_words_without_an_option_are_ids(typed: str, parsed: str) -> None:
    assert with_bare_words(typed.split(), ns) == parsed.split()


@pytest.mark.parametrize("given", ["single[3]", "single[003]", "single/3"])
def test_an_instance_is_named_as_one_sees_it(given: str) -> None:
    assert instance_name(given) == "single[003]"
    with pytest.raises(Failed):
        instance_name("single")


def test_a_line_of_the_log_is_told_in_words() -> None:
    when = "2026-11-28T22:36:19.048045Z a b[0]"
    event = {"ts": 1, "event": {"failure_event": {"group": "a b", "error": "why"}}}
    assert shown_line(f"{when} stdout {json.dumps(event)}") == "22:36:19.048 a b[000] FAIL why"
    assert shown_line(f"{when} stderr oh [1] stdout") == "22:36:19.048 a b[000] stderr: oh [1] stdout"
    assert shown_line(f"{when} runner fetch: done", "a b[001]") == ""


def test_runs_are_listed_shown_and_removed(plan: PlanDirectory, tmp_path: Path) -> None:
    write_plan(plan, "echo hello\nok\n")
    first = run_once(plan, "--instances", "1")
    elsewhere = run_once(plan, "--instances", "2", "--outputs", str(tmp_path / "elsewhere"))

    listed = plan.ok("runs", "--json").data
    assert [(one["run"], one["outcome"], one["instances"]) for one in listed] == [
        (first, "ok", 1),
        (elsewhere, "ok", 2),
    ]
    assert listed[0]["size_bytes"] > 500
    shown = plan.ok("runs").out.splitlines()
    assert shown[0].split() == ["id", "when", "case", "inst", "hosts", "outcome", "took", "size"]
    assert len(shown) == 3
    assert plan.ok("runs", "--all").out.splitlines()[1].split()[4:6] == ["greeter", "greet"]
    assert max(map(len, shown)) <= 80
    assert f"run {elsewhere} of greeter:greet" in plan.ok("runs.show").out
    assert plan.ok("runs.show", first[:12], "--json").data["run"] == first
    said = plan.ok("runs.logs", "--instance", "single[1]").out
    assert re.search(r"^[\d:.]{12} single\[001\] hello$", said, re.MULTILINE)
    assert "single[000]" not in said
    assert "no run nowhere" in plan.fab("runs.show", "nowhere").words
    assert "said nothing" in plan.fab("runs.logs", "--instance", "single[7]").words

    assert "0 removed" in plan.ok("runs.remove", "--older", "1d").words
    assert "1 would be removed" in plan.ok("runs.remove", first, "--dry-run").words
    assert [one["run"] for one in plan.ok("runs", "--json").data] == [first, elsewhere]
    plan.ok("runs.remove", "--older", "0s")
    assert plan.ok("runs", "--json").data == []
    assert not list((tmp_path / "elsewhere/outputs/local_exec/greeter").iterdir())


def test_a_record_that_cannot_be_read_is_told_and_the_others_are_listed(plan: PlanDirectory) -> None:
    write_plan(plan, "ok\n")
    whole, cut = (run_once(plan, "--instances", "1") for _ in range(2))
    directory = plan.path / "outputs/local_exec/greeter" / cut
    record = directory / "run.json"
    record.write_bytes(record.read_bytes()[:200])
    problem = f"{record}: cannot be read: it is cut off, or no record of a run\n  next: "

    ran = plan.ok("runs")
    assert problem in ran.words
    broken, good = ran.out.splitlines()[1:]
    assert cut.startswith(broken.split()[0])
    assert "unreadable" in broken
    assert whole.startswith(good.split()[0])
    assert " ok " in good
    unread, listed = plan.ok("runs", "--json").data
    assert (unread["run"], unread["outcome"], unread["outputs"]) == (cut, "unreadable", str(directory))
    assert unread["problem"].startswith(problem)
    assert (listed["run"], listed["problem"]) == (whole, None)
    assert unread.keys() == listed.keys()
    for words in (("runs.show",), ("rerun", "--dry-run"), ("runs.logs",), ("report",)):
        refused = plan.fab(*words, cut)
        assert (refused.status, refused.out) == (1, ""), words
        assert problem in refused.words, words
        assert "Traceback" not in refused.words
    last = plan.ok("runs.show")  # the last one of those that can be read, and that there is another
    assert f"run {whole} of" in last.out
    assert problem in last.words
    assert problem in plan.fab("fetch", "--run", cut).words
    assert problem in plan.fab("clean", "--run", cut).words
    # What its instances left can be drawn.
    page = plan.ok("report", str(directory), "--out", "page.html")
    assert page.out == "page.html\n"
    assert "run.json is no JSON, or cut off" in (plan.path / "page.html").read_text(encoding="utf-8")

    assert "1 removed" in plan.ok("runs.remove", cut[:14]).words
    assert not directory.exists()
    assert [one["run"] for one in plan.ok("runs", "--json").data] == [whole]


def test_a_run_that_cannot_be_removed_is_told_and_stops_no_other(plan: PlanDirectory) -> None:
    need("netns")  # for a mount
    write_plan(plan, "ok\n")
    runs = [run_once(plan, "--instances", "1") for _ in range(2)]
    held = plan.path / "outputs/local_exec/greeter" / runs[0] / "single"
    subprocess.run(["mount", "--bind", held, held], check=True)
    try:
        ran = plan.fab("runs.remove", *runs)
    finally:
        subprocess.run(["umount", held], check=True)
    assert (ran.status, "1 removed" in ran.words) == (1, True)
    assert re.search(f"{held.parent}: cannot be removed: .*single: Device or resource busy\n  next: ", ran.words)
    assert [one["run"] for one in plan.ok("runs", "--json").data] == runs[:1]


def test_old_runs_of_this_plan_alone_are_removed(plan: PlanDirectory, controller: Controller, tmp_path: Path) -> None:
    write_plan(plan, "ok\n")
    own, below, others = tmp_path / "own", plan.path / "outputs/local_exec/greeter/below", tmp_path / "others"
    for directory, made_in in ((own, plan.path), (below, tmp_path), (others, tmp_path)):
        (directory / "single/0").mkdir(parents=True)
        inputs = {"directory": str(made_in)}
        # The other plan has the same name.
        record = RunRecord(directory.name, "greeter", "greet", "", "local.single", 1.0, outcome="ok", inputs=inputs)
        record.write(directory, Secrets())
        note_place(controller, record.run, directory)

    assert {one["run"] for one in plan.ok("runs", "--json").data} == {"own", "below"}
    outside = PlanDirectory(tmp_path).fab("runs.remove", "--older", "0s", program="remote-runner")
    assert (outside.status, "there is no plan" in outside.words) == (1, True)
    assert "2 removed" in plan.ok("runs.remove", "--older", "0s").words
    assert [path.exists() for path in (own, below, others)] == [False, False, True]
    assert "1 removed" in plan.ok("runs.remove", "others", "others").words
    assert not others.exists()


def test_a_run_that_goes_on_is_followed_to_its_end_and_not_removed(plan: PlanDirectory) -> None:
    write_plan(plan, 'echo begun\nwhile [ ! -e "$GATE" ]; do sleep 0.05; done\nok\n')
    gate = plan.path / "gate"
    inventory = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    plan.inventory(f"{inventory}    env: {{GATE: {gate}}}\n")
    going = plan.start("local.single", "--testcase", "greet", "--instances", "1")
    try:
        log = plan.path / "outputs/local_exec/greeter"
        until_s = time.monotonic() + 60
        while not any(b"begun" in path.read_bytes() for path in log.glob("*/run.log")):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        assert plan.ok("runs", "--json").data[0]["outcome"] == "running"
        refused = plan.fab("runs.remove", next(log.iterdir()).name)
        assert (refused.status, "is still running" in refused.words) == (1, True)
        follower = plan.start("runs.logs", "--follow")
        gate.touch()
        out, _ = follower.communicate(timeout=60)
        assert b" single[000] OK\n" in out
        assert b" single[000] clean: " in out.splitlines()[-1]
    finally:
        going.send_signal(signal.SIGINT)
        going.communicate(timeout=60)


def test_a_record_hides_the_secrets_of_hosts_from_elsewhere(plan: PlanDirectory) -> None:
    near = plan.path.parent / "near"
    host = {"dex": {"connect": {"command": ["/bin/sh", "-s"]}, "directory": str(near), "env": {"TOKEN": "abcd-7efgh"}}}
    host["dex"]["secret_env"] = ["TOKEN"]
    plan.write("hosts", f"#!/bin/sh\necho '{json.dumps(host)}'\n").chmod(0o755)
    plan.inventory(f"{APP}hosts: {{}}\nhosts_from:\n  - command: ./hosts\n")
    write_plan(plan, "ok\n")
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
    text = (run_directory(plan) / "run.json").read_text(encoding="utf-8")
    assert '"TOKEN": "***"' in text
    assert "abcd-7efgh" not in text


def test_a_record_hides_the_secrets_of_hosts_from_elsewhere_before_they_are_known(plan: PlanDirectory) -> None:
    host = {"dex": {"connect": {"command": ["/bin/sh", "-s"]}, "directory": str(plan.path.parent / "near")}}
    host["dex"] |= {"env": {"TOKEN": "abcd-7efgh"}, "secret_env": ["TOKEN"]}
    gate = plan.path / "gate"
    waiting = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    plan.write("hosts", f"#!/bin/sh\n{waiting}\necho '{json.dumps(host)}'\n").chmod(0o755)
    plan.inventory(f"{APP}hosts: {{}}\nhosts_from:\n  - command: ./hosts\n")
    write_plan(plan, "ok\n")
    params = ("--test-param", "word=abcd-7efgh", "--test-param", "size=7")
    going = plan.start("local.single", "--testcase", "greet", "--instances", "1", *params)
    try:
        outputs = plan.path / "outputs/local_exec/greeter"
        until_s = time.monotonic() + 60
        while not (found := list(outputs.glob("*/run.json"))):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        begun = found[0].read_text(encoding="utf-8")
    finally:
        gate.touch()
        going.communicate(timeout=60)
    assert going.returncode == 0
    ended = found[0].read_text(encoding="utf-8")
    for text, size in ((begun, "***"), (ended, "7")):
        assert "abcd-7efgh" not in text
        assert json.loads(text)["groups"][0]["params"] == {"word": "***", "size": size}
    assert json.loads(begun)["outcome"] == "running"


def test_a_run_whose_fab_was_killed_is_lost(plan: PlanDirectory) -> None:
    write_plan(plan, "echo begun\nsleep 60\n")
    killed = plan.start("local.single", "--testcase", "greet", "--instances", "1")
    log = plan.path / "outputs/local_exec/greeter"
    until_s = time.monotonic() + 60
    while not any(b"begun" in path.read_bytes() for path in log.glob("*/run.log")):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    killed.kill()
    killed.communicate(timeout=60)
    assert plan.ok("runs", "--json").data[0]["outcome"] == "lost"
