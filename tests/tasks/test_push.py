"""`fab push`, to this machine and to a real sshd's host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.fab import PlanDirectory


@pytest.mark.parametrize("host", ["localhost", "dex"])
def test_push_builds_and_prints_where_it_lies(hosts_plan: PlanDirectory, host: str, tmp_path: Path) -> None:
    first = hosts_plan.ok("-H", host, "push")
    directory = Path(first.out.removesuffix("\n"))
    assert directory.is_relative_to(tmp_path)
    assert (directory / "greeter").stat().st_mode & 0o100
    assert "sent, " in first.words
    second = hosts_plan.ok("-H", host, "push")
    assert second.out == first.out
    assert "was there already" in second.words


def test_push_takes_a_built_artifact(hosts_plan: PlanDirectory) -> None:
    artifact = hosts_plan.ok("build").out.strip()
    words = ("-H", "@lab", "push", "--artifact", artifact)
    planned = hosts_plan.ok(*words, "--dry-run").data
    done = hosts_plan.ok(*words, "--json").data
    assert [(one["host"], one["hash"]) for one in planned] == [(one["host"], one["hash"]) for one in done]
    assert [one["present"] for one in done] == [False, False]
    assert "building" not in hosts_plan.ok(*words).words


@pytest.mark.parametrize("words", [("push",), ("run", "--", "true"), ("hosts.login",)])
def test_a_step_without_a_host_names_those_there_are(hosts_plan: PlanDirectory, words: tuple[str, ...]) -> None:
    ran = hosts_plan.fab(*words)
    assert (ran.status, ran.out) == (1, "")
    assert "localhost, dex, rex" in ran.words


def test_an_artifact_that_is_not_there_is_named(plan: PlanDirectory) -> None:
    ran = plan.fab("push", "--host", "localhost", "--artifact", "nowhere")
    assert (ran.status, ran.out) == (1, "")
    assert "--artifact is nowhere, and nothing is there" in ran.words
