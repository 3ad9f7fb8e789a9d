from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from remote_runner.progress import Began, Ended, Moved
from tasks.view.draw import draw
from tasks.view.model import Model

COLOURS = re.compile("\x1b\\[[0-9;]*m")
LINES = 12


def drawn(model: Model, width: int, at_s: float = 73.0) -> list[str]:
    lines = draw(model.view(at_s, LINES), width)
    assert all(cell_len(COLOURS.sub("", line)) <= width for line in lines), "it would wrap"
    assert all(line.isprintable() for line in (COLOURS.sub("", line) for line in lines))
    return [COLOURS.sub("", line).rstrip() for line in lines]


def model_of(instances: int, hosts: int, host: str = "host-{}.lab.example.org") -> Model:
    model = Model()
    model.expect(
        "server-client, run dc5li4k4hoohubn9rudg", [(f"single[{n:03d}]", "single") for n in range(instances)], 0.0
    )
    for number in range(instances):
        who, where = f"single[{number:03d}]", host.format(number % hosts)
        model.take(Began(who, "run" if number % 3 else "push", where), 1.0)
        if number % 5 == 1:
            model.take(Ended(who, "ok" if number % 10 == 1 else "failed"), 60.0)
    model.take(Moved(host.format(0), "push", "", 0, 60 << 20), 70.0)
    model.take(Moved(host.format(0), "push", "", 21 << 20, 60 << 20), 73.0)
    return model


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize(("instances", "hosts"), [(2, 2), (100, 5), (1000, 200)])
def test_it_fits(width: int, instances: int, hosts: int) -> None:
    lines = drawn(model_of(instances, hosts), width)
    assert 3 <= len(lines) <= LINES + 4
    assert lines[-1].startswith("1:13  ")


def test_two_instances_at_80_columns() -> None:
    assert drawn(model_of(2, 2, "dex{}"), 80) == [
        "",
        "host  wait  run  ok  fail   time  now",
        "dex0     1    ·   ·     ·   1:12  push 21 MiB 35%, 7.0 MiB/s, 0:05 left",
        "dex1     ·    ·   1     ·   0:59  ok",
        "1:13  1 waiting  0 running  1 ok  0 failed  server-client, run dc5li4k4hoohubn9…",
    ]


def test_a_thousand_instances_on_more_hosts_than_lines_at_140_columns() -> None:
    assert drawn(model_of(1000, 200, "dex{}"), 140) == [
        "",
        "group   waiting  running    ok  failed     time  now",
        "single      267      533   100     100     1:12  push 21 MiB of 60 MiB, 7.0 MiB/s, 0:05 left",
        "1:13  267 waiting  533 running  100 ok  100 failed  server-client, run dc5li4k4hoohubn9rudg",
    ]


def test_no_column_moves_while_counts_grow() -> None:
    model = model_of(200, 2, "dex{}")
    before = drawn(model, 80)[1]
    for number in range(200):
        model.take(Ended(f"single[{number:03d}]", "ok"), 72.0)
    assert drawn(model, 80)[1] == before


def test_hosts_alone_have_a_step_and_no_counts() -> None:
    model = Model()
    model.expect("", [(name, name) for name in ("dex", "rex", "fir")], 0.0)
    model.take(Began("dex", "connect", "dex"), 1.0)
    model.take(Began("rex", "connect", "rex"), 1.0)
    model.take(Ended("rex", "failed"), 2.0)
    assert drawn(model, 80, 4.0) == [
        "",
        "host   time  now",
        "dex    0:03  connect",
        "rex    0:01  failed",
        "fir    0:00",
        "0:04  1 waiting  1 running  0 ok  1 failed",
    ]
