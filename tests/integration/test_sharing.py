"""What instances share: one connection for each host, one build, one push; also of two runs at once."""

from __future__ import annotations

from pathlib import Path

from tests.hosts import UserSshd
from tests.hosts_netns import NetnsHost
from tests.integration.runs import (
    Machine,
    Outcome,
    Plan,
    ended,
    listening,
    nothing_left,
    place_on,
    read_until,
    single_words,
    wait_for,
)
from tests.integration.ways import DIRECT, let_fab_start_by

QUICK = 'echo done >"$TEST_OUTPUTS_PATH/done"; ok\n'
# A build that says each time that it was done: the artifact does not hold that, so its hash stays.
COUNTED = {"command": ["sh", "-c", "echo built >>built; cp application {out}"]}


def builds(plan: Plan) -> int:
    """How often the plan's application was built."""
    return (plan.directory / "built").read_text(encoding="utf-8").count("built\n")


def pushes(outcome: Outcome) -> list[bool]:
    """For each instance whether it was the one that sent the artifact."""
    details = [str(instance.step("push")["detail"]) for instance in outcome.instances]
    assert all(("(sent, " in detail) != ("(there already)" in detail) for detail in details), details
    return ["(sent, " in detail for detail in details]


def test_many_instances_take_one_connection_one_build_one_push(
    user_sshd: UserSshd, tmp_path: Path, machine: Machine
) -> None:
    place = place_on(user_sshd, tmp_path / "far", slots=8)
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place], **COUNTED)
    before = user_sshd.connections()

    outcome = plan.single(6).all_ok()

    assert user_sshd.connections() - before == 1
    assert builds(plan) == 1
    assert sum(pushes(outcome)) == 1
    details = [instance.step("build")["detail"] for instance in outcome.instances]
    assert all(detail.endswith("; builder command: app.builder is command") for detail in details), details
    assert len(place.artifacts()) == 1
    nothing_left(outcome.run, [place])


def test_a_later_run_opens_no_connection_and_pushes_nothing(
    user_sshd: UserSshd, tmp_path: Path, machine: Machine
) -> None:
    place = place_on(user_sshd, tmp_path / "far")
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place], **COUNTED)
    let_fab_start_by(plan.directory, DIRECT)  # by the broker, which stays
    first = plan.single().all_ok()
    before = user_sshd.connections()

    second = plan.single().all_ok()

    assert user_sshd.connections() == before
    assert (pushes(first), pushes(second)) == ([True], [False])
    assert builds(plan) == 2  # once for each run
    nothing_left(second.run, [place])


def test_more_instances_than_one_connection_carries(user_sshd: UserSshd, tmp_path: Path, machine: Machine) -> None:
    """Ten sessions are what a stock sshd allows (MaxSessions); the agent's is the only one."""
    place = place_on(user_sshd, tmp_path / "far", slots=12)
    # Each waits for all, so that all are there at once.
    script = """
        mkdir -p RENDEZVOUS
        : >"RENDEZVOUS/$REMOTE_RUNNER_NUMBER"
        tries=0
        while [ "$(ls RENDEZVOUS | wc -l)" -lt 12 ] && [ $tries -lt 300 ]; do sleep 0.1; tries=$((tries + 1)); done
        [ $tries -lt 300 ] && ok
    """.replace("RENDEZVOUS", str(tmp_path / "rendezvous"))
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])
    before = user_sshd.connections()

    outcome = plan.single(12).all_ok()

    assert user_sshd.connections() - before == 1
    nothing_left(outcome.run, [place])


def test_an_artifact_that_was_cleaned_away_is_pushed_again(
    user_sshd: UserSshd, tmp_path: Path, machine: Machine
) -> None:
    place = place_on(user_sshd, tmp_path / "far")
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place])
    let_fab_start_by(plan.directory, DIRECT)
    plan.single().all_ok()
    (artifact,) = place.artifacts()
    (place.base / "artifacts" / artifact).rename(tmp_path / "taken away")

    again = plan.single().all_ok()

    assert "since it was missing or had changed" in again.ended.stderr
    assert place.artifacts() == [artifact]


def test_an_artifact_that_its_application_changed_is_pushed_again(
    user_sshd: UserSshd, tmp_path: Path, machine: Machine
) -> None:
    """Also where one process runs both, and remembers that it pushed it."""
    place = place_on(user_sshd, tmp_path / "far")
    script = 'grep -q "^# changed" "$0" && exit 9\nchmod u+w "$0"; echo "# changed" >>"$0"; ok\n'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])
    let_fab_start_by(plan.directory, DIRECT)
    plan.single().all_ok()

    again = plan.single().all_ok()

    assert "since it was missing or had changed" in again.ended.stderr
    assert len(place.artifacts()) == 1


def test_two_runs_at_once_on_one_host(netns_host: NetnsHost, tmp_path: Path, machine: Machine) -> None:
    place = place_on(netns_host, slots=3)
    # Both are under way before either ends.
    script = """
        event message_event '"message":"I am ready"'
        until [ -e /tmp/go ]; do sleep 0.05; done
        echo "$TEST_RUN $SYNC_SERVICE_PORT" >"$TEST_OUTPUTS_PATH/run"
        ok
    """
    plans = [Plan.of_script(tmp_path / name, machine, script, [place]) for name in ("one", "other")]
    for plan in plans:
        let_fab_start_by(plan.directory, DIRECT)
    before = netns_host.connections()
    running = [plan.start(*single_words(3)) for plan in plans]
    for fab in running:
        read_until(fab, "I am ready", 3)

    netns_host.here("/tmp/go").touch()
    outcomes = [Outcome.of(ended(fab)).all_ok() for fab in running]

    assert netns_host.connections() - before == 1
    ports = set()
    for outcome in outcomes:
        told = {instance.text("run") for instance in outcome.instances}
        assert len(told) == 1
        run, port = told.pop().split()
        assert run == outcome.run
        ports.add(port)
        nothing_left(outcome.run, [place])
    assert len(ports) == 2  # each has its own sync service
    assert len(place.artifacts()) == 1
    wait_for(lambda: listening(netns_host) == {22}, 10)
