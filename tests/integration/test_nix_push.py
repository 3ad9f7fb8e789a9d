"""Runs on a host with a Nix store of its own, which collects its garbage all the while."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts_netns import NetnsHost
from tests.integration.runs import EVENTS, Machine, Plan, nothing_left, place_on
from tests.nix_bed import NixHere, simple_flake

# Works with all of its closure until the garbage has been collected twice more.
SCRIPT = """
out=${0%/bin/*}
began=$(cat /tmp/collected)
while [ "$(cat /tmp/collected)" -lt $((began + 3)) ] && [ -e /tmp/go-on ]; do sleep 0.05; done
for text in $(cat "$out/texts"); do cat "$text" >> "$TEST_OUTPUTS_PATH/texts" || exit 1; done
ok
"""
COLLECT = """
touch /tmp/go-on
n=0
while [ $n -lt 3000 ] && [ -e /tmp/go-on ]; do
    echo $n >/tmp/aside && mv /tmp/aside /tmp/collected
    nix-store --gc >/dev/null 2>&1
    n=$((n + 1))
done
echo $n
"""
TEXTS = [f"text {number} of a run\n" for number in range(30)]


@contextmanager
def collecting(host: NetnsHost) -> Iterator[None]:
    """Collect garbage there in a loop."""
    with subprocess.Popen(host.ssh_argv(COLLECT), stdout=subprocess.PIPE, text=True) as loop:
        try:
            while not host.here("/tmp/collected").exists():
                assert loop.poll() is None
            yield
        finally:
            host.here("/tmp/go-on").unlink(missing_ok=True)
            assert loop.stdout is not None
            count = loop.stdout.read()
        assert int(count) > 3


@pytest.fixture
def plan(nix_here: NixHere, nix_host: NetnsHost, tmp_path: Path, machine: Machine) -> Plan:
    """A plan whose application has a closure of 31 paths."""
    plan = Plan.of_script(tmp_path / "plan", machine, SCRIPT, [])
    (plan.directory / "application").unlink()
    simple_flake(plan.directory, name="application", script=EVENTS + SCRIPT, texts=TEXTS)
    plan.write_inventory({"name": "application"}, [place_on(nix_host)])
    return plan


def test_twenty_instances_make_one_copy_and_run_while_garbage_is_collected(plan: Plan, nix_host: NetnsHost) -> None:
    with collecting(nix_host):
        outcome = plan.single(20).all_ok()
    details = sorted(str(instance.step("push")["detail"]).partition(" (")[2] for instance in outcome.instances)
    assert details[0].startswith("31 of 31 paths sent, ")
    assert details[1:] == ["there already)"] * 19
    for instance in outcome.instances:
        assert sorted(instance.text("texts").splitlines()) == sorted("".join(TEXTS).splitlines())
    nothing_left(outcome.run, [place_on(nix_host)])


def test_what_was_cleaned_since_the_last_run_is_pushed_again(plan: Plan, nix_host: NetnsHost) -> None:
    with collecting(nix_host):
        plan.single().all_ok()
        nix_host.as_root("rm /root/.cache/remote-runner/nix/roots/* && nix-store --gc")
        outcome = plan.single().all_ok()
    assert "(31 of 31 paths sent, " in outcome.ended.stderr, str(outcome.ended)
