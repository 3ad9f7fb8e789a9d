"""The sync service's decisions, without input or output."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest

from testground.sync.core import Connection, Limits, SyncCore
from testground.sync.protocol import BAD_FRAME, Close

STATE = "run:r:plan:p:case:c:states:s"
TOPIC = "run:r:plan:p:case:c:topics:t"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ask(core: SyncCore, connection: Connection, request_id: str, **action: object) -> list[Connection]:
    return list(core.receive(connection, json.dumps({"id": request_id, **action})))


def taken(core: SyncCore, connection: Connection) -> list[Any]:
    """What is sent now: answers as (id, seq or None), messages as (id, value), a closing as it is."""
    found: list[Any] = []
    while (frame := core.take(connection)) is not None:
        if isinstance(frame, Close):
            found.append(frame)
            continue
        fields = json.loads(frame)
        answer = fields["publish"] or fields["signal_entry"]
        value = json.loads(fields["subscribe"]) if fields["subscribe"] else answer["seq"] if answer else None
        found.append((fields["id"], value))
    return found


def test_each_signal_wakes_exactly_those_whose_target_it_meets() -> None:
    core = SyncCore()
    one, two, three, signaller = (core.connect() for _ in range(4))
    for target, connection in enumerate((one, two, three), start=1):
        assert ask(core, connection, "b", barrier={"state": STATE, "target": target}) == []
    assert ask(core, signaller, "s", signal_entry={"state": STATE}) == [signaller, one]
    assert ask(core, signaller, "s", signal_entry={"state": STATE}) == [signaller, two]
    assert taken(core, one) == taken(core, two) == [("b", None)]
    assert taken(core, three) == []


def test_a_message_wakes_its_subscribers_and_nobody_else() -> None:
    core = SyncCore()
    subscriber, other, publisher = core.connect(), core.connect(), core.connect()
    ask(core, subscriber, "t", subscribe={"topic": TOPIC})
    ask(core, other, "u", subscribe={"topic": TOPIC + "u"})
    assert ask(core, publisher, "p", publish={"topic": TOPIC, "payload": "m"}) == [publisher, subscriber]
    assert taken(core, subscriber) == [("t", "m")]
    assert taken(core, other) == []


def test_answers_go_before_messages_and_subscriptions_take_turns() -> None:
    core = SyncCore()
    connection = core.connect()
    for number in range(3):
        ask(core, connection, "p", publish={"topic": TOPIC, "payload": number})
    taken(core, connection)
    ask(core, connection, "t", subscribe={"topic": TOPIC})
    ask(core, connection, "u", subscribe={"topic": TOPIC})
    ask(core, connection, "s", signal_entry={"state": STATE})
    assert taken(core, connection) == [
        ("s", 1),
        *[(subscription, number) for number in range(3) for subscription in ("t", "u")],
    ]


def test_a_cancelled_subscription_brings_one_more_message_as_recorded_and_ends() -> None:
    core = SyncCore()
    connection = core.connect()
    for request_id in ("t", "u"):
        ask(core, connection, request_id, subscribe={"topic": TOPIC})
    ask(core, connection, "t", is_cancel=True)
    for number in range(3):
        ask(core, connection, "p", publish={"topic": TOPIC, "payload": number})
    assert [entry for entry in taken(core, connection) if entry[0] != "p"] == [("t", 0), ("u", 0), ("u", 1), ("u", 2)]


def test_a_cancelled_barrier_stays_silent_and_others_on_the_state_do_not() -> None:
    core = SyncCore()
    canceller, other = core.connect(), core.connect()
    for connection, request_id in ((canceller, "b"), (canceller, "c"), (other, "b")):
        ask(core, connection, request_id, barrier={"state": STATE, "target": 1})
    assert ask(core, canceller, "b", is_cancel=True) == []
    assert ask(core, other, "s", signal_entry={"state": STATE}) == [other, canceller]
    assert taken(core, canceller) == [("c", None)]
    assert taken(core, other) == [("s", 1), ("b", None)]


def test_of_one_id_a_subscription_is_cancelled_before_a_barrier() -> None:
    core = SyncCore()
    connection = core.connect()
    ask(core, connection, "x", barrier={"state": STATE, "target": 1})
    ask(core, connection, "x", subscribe={"topic": TOPIC})
    ask(core, connection, "x", is_cancel=True)
    ask(core, connection, "s", signal_entry={"state": STATE})
    assert taken(core, connection) == [("s", 1), ("x", None)]


def test_after_a_bad_frame_earlier_answers_go_out_and_later_requests_count_for_nothing() -> None:
    core = SyncCore()
    connection, other = core.connect(), core.connect()
    ask(core, connection, "b", barrier={"state": STATE, "target": 1})
    ask(core, connection, "t", subscribe={"topic": TOPIC})
    ask(core, connection, "p", publish={"topic": "elsewhere", "payload": 0})
    assert list(core.receive(connection, "bad")) == [connection]
    assert ask(core, connection, "s", signal_entry={"state": STATE}) == []
    assert ask(core, other, "s", signal_entry={"state": STATE}) == [other]
    assert ask(core, other, "p", publish={"topic": TOPIC, "payload": 0}) == [other]
    assert taken(core, connection) == [("p", 1), BAD_FRAME]
    assert taken(core, other) == [("s", 1), ("p", 1)]


def test_a_client_that_left_is_sent_nothing_and_what_it_did_stays() -> None:
    core = SyncCore()
    leaver, stayer = core.connect(), core.connect()
    ask(core, leaver, "s", signal_entry={"state": STATE})
    ask(core, leaver, "p", publish={"topic": TOPIC, "payload": "m"})
    ask(core, leaver, "b", barrier={"state": STATE, "target": 2})
    ask(core, leaver, "t", subscribe={"topic": TOPIC})
    core.disconnect(leaver)
    assert ask(core, stayer, "s", signal_entry={"state": STATE}) == [stayer]
    assert ask(core, stayer, "p", publish={"topic": TOPIC, "payload": "n"}) == [stayer]
    ask(core, stayer, "t", subscribe={"topic": TOPIC})
    assert taken(core, leaver) == []
    assert taken(core, stayer) == [("s", 2), ("p", 2), ("t", "m"), ("t", "n")]


def test_a_run_is_forgotten_at_its_owners_word_alone() -> None:
    core = SyncCore()
    connection = core.connect()
    ask(core, connection, "s", signal_entry={"state": STATE})
    ask(core, connection, "t", subscribe={"topic": TOPIC})
    ask(core, connection, "p", publish={"topic": TOPIC, "payload": "lost"})
    ask(core, connection, "o", signal_entry={"state": "run:other:plan:p:case:c:states:s"})
    taken(core, connection)
    ask(core, connection, "b", barrier={"state": STATE, "target": 2})
    assert core.forget_run("r")
    assert not core.forget_run("r")
    assert core.runs == ("other",)
    ask(core, connection, "s", signal_entry={"state": STATE})
    ask(core, connection, "s", signal_entry={"state": STATE})
    ask(core, connection, "p", publish={"topic": TOPIC, "payload": "new"})
    assert taken(core, connection) == [("s", 1), ("s", 2), ("p", 1)]


def test_messages_under_way_when_their_run_is_forgotten_are_not_sent() -> None:
    core = SyncCore()
    connection = core.connect()
    ask(core, connection, "t", subscribe={"topic": TOPIC})
    ask(core, connection, "p", publish={"topic": TOPIC, "payload": "m"})
    core.forget_run("r")
    assert taken(core, connection) == [("p", 1)]


def test_a_run_is_forgotten_after_hours_without_anybody_and_no_sooner() -> None:
    clock = Clock()
    core = SyncCore(idle_s=3600, clock=clock)
    connection = core.connect()
    ask(core, connection, "s", signal_entry={"state": STATE})
    clock.now_s += 10_000
    assert core.forget_idle() == ()  # somebody who uses it is connected
    core.disconnect(connection)
    assert core.forget_idle() == ()  # nobody is connected just now
    clock.now_s += 3599
    assert core.forget_idle() == ()
    passing = core.connect()
    ask(core, passing, "s", signal_entry={"state": STATE})
    assert taken(core, passing) == [("s", 2)]
    core.disconnect(passing)
    clock.now_s += 3599
    assert core.forget_idle() == ()  # it was used in between
    clock.now_s += 1
    assert core.forget_idle() == ("r",)
    assert core.runs == ()


def errors(core: SyncCore, connection: Connection) -> list[str]:
    """The errors that are answered now."""
    found = []
    while (frame := core.take(connection)) is not None:
        assert not isinstance(frame, Close)
        found.append(json.loads(frame)["error"])
    return found


def test_what_is_kept_has_a_bound_and_each_client_a_share_of_it() -> None:
    core = SyncCore(limits=Limits(kept_bytes=20_000, kept_for_one_bytes=8_000))
    greedy, late = core.connect(), core.connect()
    for _ in range(4):
        ask(core, greedy, "p", publish={"topic": TOPIC, "payload": "x" * 2000})
    assert errors(core, greedy) == ["", "", *["the sync service keeps no more than 8000 bytes of one client"] * 2]
    assert ask(core, late, "s", signal_entry={"state": STATE}) == [late]
    assert ask(core, late, "p", publish={"topic": TOPIC, "payload": "x"}) == [late]
    assert taken(core, late) == [("s", 1), ("p", 3)]
    others = [core.connect() for _ in range(5)]
    for number, other in enumerate(others):
        for kind in ("signal_entry", "barrier", "subscribe"):
            name = "topic" if kind == "subscribe" else "state"
            ask(core, other, "x", **{kind: {name: f"run:r{number}:plan:{'x' * 1000}:{kind}"}})
    assert errors(core, others[0]) == ["", ""]
    assert errors(core, others[4])[-1] == "the sync service keeps no more than 20000 bytes of all runs"
    assert core.forget_run("r")
    ask(core, greedy, "p", publish={"topic": TOPIC, "payload": "x" * 2000})
    assert errors(core, greedy) == [""]
    for name in core.runs:
        core.forget_run(name)
    assert core._kept_bytes == 0
    assert not any(connection._kept_in_all_bytes for connection in (greedy, late, *others))


@pytest.mark.parametrize(("kind", "name"), [("barrier", "state"), ("subscribe", "topic")])
def test_open_requests_have_a_bound_and_ending_them_makes_room(kind: str, name: str) -> None:
    core = SyncCore(limits=Limits(open_requests=3, open_bytes=10_000, cancelled=0))
    connection, other = core.connect(), core.connect()
    action: dict[str, Any] = {kind: {name: "run:r:plan:k", **({"target": 1} if kind == "barrier" else {})}}
    for request_id in "abcd":
        ask(core, connection, request_id, **action)
    assert errors(core, connection) == ["3 requests of this client are open; no more are taken"]
    ask(core, connection, "b", is_cancel=True)
    ask(core, connection, "d", **action)
    ask(core, other, "x" * 20_000, **action)
    assert errors(core, connection) == []
    assert errors(core, other) == ["0 requests of this client are open; no more are taken"]
    assert connection._open_requests == 3
    core.disconnect(connection)
    assert (connection._open_requests, connection._open_bytes) == (0, 0)


def test_a_client_that_lets_its_answers_lie_is_behind_until_it_takes_them() -> None:
    core = SyncCore(limits=Limits(unsent_bytes=1000))
    connection = core.connect()
    for _ in range(20):
        ask(core, connection, "b", barrier={"state": STATE, "target": 0})
    assert core.is_behind(connection)
    taken(core, connection)
    assert not core.is_behind(connection)
    assert connection._unsent_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("has_messages", [False, True])
def test_subscribing_and_cancelling_leaves_nothing_behind(has_messages: bool) -> None:
    core = SyncCore()
    connection = core.connect()
    if has_messages:
        ask(core, connection, "p", publish={"topic": TOPIC, "payload": 1})
    tracemalloc.start()
    try:
        for number in range(5000):
            ask(core, connection, f"{number}", subscribe={"topic": TOPIC})
            ask(core, connection, f"{number}", is_cancel=True)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 400_000
    assert connection._open_requests == Limits().cancelled


@pytest.mark.slow
@pytest.mark.parametrize("same_id", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("barrier", "state"), ("subscribe", "topic")])
def test_cancelling_costs_the_same_however_much_is_open(kind: str, name: str, same_id: bool) -> None:
    core = SyncCore()
    connection = core.connect()
    frames = [json.dumps({"id": "0" if same_id else str(number), "is_cancel": True}) for number in range(20_000)]
    action = {kind: {name: "run:r:plan:k", **({"target": 1} if kind == "barrier" else {})}}
    for number in range(20_000):
        ask(core, connection, "0" if same_id else str(number), **action)
    began_s = time.process_time()
    for frame in frames:
        core.receive(connection, frame)
    assert time.process_time() - began_s < 2  # 0.2 s; by looking through what is open it took 20
    assert connection._open_requests <= Limits().cancelled
