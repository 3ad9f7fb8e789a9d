from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from remote_runner.connection.verbs.facts import Clock, HostFacts, Nix, NixAccess
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.kinds import Builder
from remote_runner.inventory.systems import System
from tasks.checks.between import ports_of
from tasks.checks.finding import HERE, Finding, Outcome, condensed, fail, findings_table, ok, warn
from tasks.checks.hosts import judge
from testground.manifest import Manifest

WELL = HostFacts(
    system=System.local(),
    hostname="dex",
    user="tester",
    base="/home/tester/.cache/remote-runner",
    free_bytes=20 << 30,
    user_namespaces=True,
    nix=Nix(NixAccess.NONE),
    clock=Clock(0.002, 0.001),
    most_files=4096,
    most_processes=30_000,
)


@pytest.fixture
def entry(tmp_path: Path) -> HostEntry:
    (tmp_path / "inventory.yaml").write_text("app: {name: a, builder: command, command: x}\nhosts: {dex: {slots: 4}}\n")
    return Inventory.load(tmp_path, cache=tmp_path).host("dex")


def bad(entry: HostEntry, facts: HostFacts) -> dict[str, tuple[Outcome, str]]:
    found = {finding.check: finding for finding in judge(entry, facts)}
    assert set(found) == {"space", "clock", "limits", "namespaces", "Nix"}
    return {check: (one.outcome, one.next_step) for check, one in found.items() if one.outcome is not Outcome.OK}


def test_a_host_that_is_well(entry: HostEntry) -> None:
    assert bad(entry, WELL) == {}


@pytest.mark.parametrize(
    ("facts", "check", "outcome", "step"),
    [
        (replace(WELL, free_bytes=500 << 20), "space", Outcome.WARN, "fab clean -H dex"),
        (replace(WELL, free_bytes=5 << 20), "space", Outcome.FAIL, "fab clean -H dex"),
        (replace(WELL, clock=Clock(-2.0, 0.1)), "clock", Outcome.WARN, "NTP"),
        (replace(WELL, clock=Clock(3600.0, 0.1)), "clock", Outcome.FAIL, "NTP"),
        (replace(WELL, most_files=256), "limits", Outcome.WARN, "ulimit -n"),
        (replace(WELL, most_processes=20), "limits", Outcome.WARN, "ulimit -u"),
        (replace(WELL, nix=None), "Nix", Outcome.WARN, ""),
    ],
)
def test_what_is_not_well(entry: HostEntry, facts: HostFacts, check: str, outcome: Outcome, step: str) -> None:
    found = bad(entry, facts)
    assert list(found) == [check]
    assert found[check][0] is outcome
    assert step in found[check][1]


def test_a_clock_that_is_only_uncertain_is_well(entry: HostEntry) -> None:
    assert bad(entry, replace(WELL, clock=Clock(1.5, 1.45))) == {}


def test_a_host_that_takes_no_closures_fails_where_nix_builds(entry: HostEntry) -> None:
    facts = replace(WELL, user_namespaces=False, nix=Nix(NixAccess.REFUSED, why="not allowed"))
    assert bad(entry, facts) == {}
    with_nix = replace(entry, app=replace(entry.app, builder=Builder.NIX))
    assert bad(with_nix, facts)["Nix"][0] is Outcome.FAIL


def test_the_table_fits_and_breaks_no_word() -> None:
    findings = [
        ok(HERE, "Python", "3.11.7"),
        fail("a-host", "clock", "3600.000 s ahead (±0.001)", "let both machines keep time\nby NTP (chrony)"),
    ]
    assert findings_table(findings, 60).splitlines() == [
        "where   check   outcome  found, and what to do",
        "here    Python  ok       3.11.7",
        "a-host  clock   fail     3600.000 s ahead (±0.001)",
        "                         → let both machines keep time",
        "                           by NTP (chrony)",
    ]
    narrow = findings_table(findings, 50).splitlines()
    assert max(map(len, narrow)) <= 50


def test_of_many_hosts_those_that_are_well_have_one_row() -> None:
    findings: list[Finding] = [ok(HERE, "Python", "3.11.7")]
    for host in ("a", "b", "c", "d"):
        findings += [ok(host, "login", "as x"), ok(host, "clock", "0 s") if host != "b" else warn(host, "clock", "1 s")]
    shown = condensed(findings)
    assert [(one.where, one.check, one.outcome.value) for one in shown] == [
        ("here", "Python", "ok"),
        ("a", "all", "ok"),
        ("b", "clock", "warn"),
        ("c", "all", "ok"),
        ("d", "all", "ok"),
    ]
    assert condensed(findings[:7]) == findings[:7]


def test_the_ports_are_those_that_the_manifest_names() -> None:
    text = """
name = "x"
[[testcases]]
name = "one"
instances = { min = 1, max = 1, default = 1 }
[testcases.params.server_port]
type = "int"
default = 8188
[testcases.params.port]
type = "int"
default = 0
[testcases.params.report]
type = "int"
default = 9
"""
    assert ports_of(Manifest.from_toml(text)) == (8188,)
    assert ports_of(None) == (0,)
