from __future__ import annotations

from pathlib import Path

from remote_runner.instance.record import Record
from remote_runner.secrets import Secrets
from tasks.runs.summary import left_there_lines, summary
from testground.local_exec import GroupOutcome, InstanceOutcome, RunOutcome
from testground.verdict import Verdict


def run_of(tmp_path: Path, instances: int, *, reason: str = "", left_out: str = "", cancelled: str = "") -> RunOutcome:
    """A run with a record for every second instance; `{}` in the texts is the instance's number."""
    found = []
    for number in range(instances):
        outputs = tmp_path / str(number)
        outputs.mkdir()
        if number % 2 == 0:
            record = Record(f"r-single-{number}", host=f"h{number % 4}")
            record.left_out = [left_out.format(number)] if left_out else []
            record.write(outputs, Secrets())
        verdict = Verdict.FAILED if reason else Verdict.OK
        found.append(InstanceOutcome("single", number, verdict, reason.format(number), 0, outputs))
    group = GroupOutcome("single", 0 if reason else instances, instances)
    return RunOutcome("r", "p", "c", tuple(found), (group,), cancelled, 1.0, tmp_path)


def test_where_a_killed_instance_was_is_known_without_its_record(tmp_path: Path) -> None:
    hosts = {f"single[{number:03d}]": "h1" for number in range(4)}
    text = summary(run_of(tmp_path, 4, reason="killed", cancelled="stopped"), {"h1": ["single[001]"]}, hosts, 80)
    assert [line.split()[:2] for line in text.splitlines()[1:5]] == [
        ["single[000]", "h0"],
        ["single[001]", "h1"],
        ["single[002]", "h2"],
        ["single[003]", "h1"],
    ]
    assert "4 instances on 3 hosts failed: killed\n  single[000-003] on h0, h1, h2" in text
    assert "\nthe run was stopped\n" in text


def test_what_differs_in_each_instance_does_not_fill_the_screen(tmp_path: Path) -> None:
    run = run_of(tmp_path, 400, reason="no answer after {} ms", left_out="socket-{}: it is a socket")
    text = summary(run, {}, {}, 80)
    assert "and 390 other reasons: fab runs.show r\n" in text
    assert "190 further lists of what was left out" in text
    assert len(text.splitlines()) < 40


def test_what_is_left_out_alike_is_told_once(tmp_path: Path) -> None:
    text = summary(run_of(tmp_path, 40, left_out="socket: it is a socket"), {}, {}, 80)
    assert text.count("left out of their outputs: socket: it is a socket") == 1


def test_a_command_that_would_be_broken_names_no_hosts() -> None:
    few, more = ({f"a-host-{number}": ["single[000]"] for number in range(count)} for count in (2, 4))
    assert left_there_lines("r", few, 80)[-1] == "  fab clean --run r --host a-host-0 --host a-host-1"
    assert left_there_lines("r", more, 60)[-2:] == ["  fab fetch --run r", "  fab clean --run r"]
    many = {f"h{number}": ["single[000]"] for number in range(30)}
    assert len(left_there_lines("r", many, None)) == 13
