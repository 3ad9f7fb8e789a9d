"""The recorded scripts of instances as applications of `fab local.composition`: the daemon's words and verdicts."""

from __future__ import annotations

import re

import pytest

from tests.integration.runs import Machine, Outcome, Plan, localhost
from tests.recordings import RECORDINGS
from tests.testground.daemon_text import as_recorded, daemon_printed, own_printed, recorded_failures

PROGRESS = re.compile(r"(choose|build|push|forward|run|fetch|clean): ")
START = '#!/bin/sh\nexec "${0%/*}/$TEST_GROUP_ID.sh"\n'
LONG = "long-line-then-success"


@pytest.fixture(scope="module")
def names() -> list[str]:
    return sorted(path.stem for path in (RECORDINGS / "verdict").glob("*.sh"))


@pytest.fixture(scope="module")
def outcome(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run with a group for each script."""
    directory = tmp_path_factory.mktemp("verdicts")
    with Machine.made(directory / "machine") as machine:
        place = localhost(directory / "base", slots=len(names))
        plan = Plan.of_script(directory / "plan", machine, "", [place])
        scripts = directory / "plan" / "scripts"
        scripts.mkdir()
        for name in names:
            text = (RECORDINGS / "verdict" / f"{name}.sh").read_text(encoding="utf-8")
            (scripts / f"{name}.sh").write_text(text.replace("sleep 5", "sleep 0.5"), encoding="utf-8")
        (scripts / "start").write_text(START, encoding="utf-8")
        for path in scripts.iterdir():
            path.chmod(0o755)
        plan.write_inventory({"name": "scripts", "command": "cp -R scripts {out}", "program": "start"}, [place])
        return plan.groups(dict.fromkeys(names, 1))


def test_words_and_verdicts_are_the_daemons(names: list[str], outcome: Outcome) -> None:
    assert len(names) == 20
    printed = [one for one in own_printed(as_recorded(outcome.ended.stderr)) if not PROGRESS.match(one.text)]
    for name in names:
        recording = (RECORDINGS / "verdict" / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        ours, theirs = [one for one in printed if one.group == name], daemon_printed(recording)
        verdict = outcome.group(name).verdict
        if name == LONG:  # which ends the daemon's reading; remote-runner cuts it, and passes on what follows
            assert [one.word for one in ours] == ["OTHER", "OK"]
            assert verdict == "ok"
            continue
        assert len(ours) == len(theirs), (name, ours, theirs)
        assert all(our.said_by(their) for our, their in zip(ours, theirs, strict=True)), (name, ours, theirs)
        assert (verdict == "ok") == (recorded_failures(recording) == 0), name
