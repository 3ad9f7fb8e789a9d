"""Files of ours that end at any byte (a full disk, a lost power): made anew, or as if they were not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from remote_runner.controller import Controller
from remote_runner.errors import ControllerError
from remote_runner.instance.record import RECORD_FILE, Record, Step, read_record
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.known import known_of, remember_contact
from remote_runner.inventory.sources.allocation import Allocation, left_allocations
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.reading import read_for_run
from remote_runner.inventory.systems import System
from remote_runner.inventory.yaml_tree import parse_yaml
from remote_runner.machine.files import write_atomically
from remote_runner.runs import KeptRun, note_run, noted_run
from remote_runner.secrets import Secrets

TEXT = "hosts:\n  a: {ssh: {host: b}}\n"


def at_any_byte(directory: Path, read: Callable[[], object], others: tuple[object, ...]) -> None:
    """Cut the one file below `directory` everywhere: `read` says what it said, or one of `others`."""
    (file,) = (path for path in directory.rglob("*") if path.is_file())
    whole, said = file.read_bytes(), read()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert read() in (said, *others), whole[:end]
    file.write_bytes(whole)


def test_a_note_of_a_run(tmp_path: Path) -> None:
    controller = Controller(tmp_path, tmp_path)
    note_run(controller, KeptRun("run", ("a", "b")))
    at_any_byte(tmp_path, lambda: noted_run(controller, "run"), (None,))


def test_what_is_known_of_a_host(tmp_path: Path) -> None:
    entry = Inventory.parse(TEXT, tmp_path / "inventory.yaml").host("a")
    controller = Controller(tmp_path, tmp_path)
    remember_contact(controller, entry, System("x86_64", "linux"))
    at_any_byte(tmp_path, lambda: known_of(controller, entry).system, (None,))


def test_a_parsed_inventory(tmp_path: Path) -> None:
    parse_yaml(TEXT, "inventory.yaml", cache=tmp_path)
    at_any_byte(tmp_path, lambda: parse_yaml(TEXT, "inventory.yaml", cache=tmp_path), ())


def test_a_record(tmp_path: Path) -> None:
    record = Record("id", plan="plan", case="case", run="run", group="group")
    record.steps.append(Step("choose", 0.0))
    record.write(tmp_path, Secrets())
    assert (tmp_path / RECORD_FILE).exists()
    at_any_byte(tmp_path, lambda: read_record(tmp_path), (None,))


def test_a_record_of_an_allocation(tmp_path: Path) -> None:
    """The job is given back by the record's name."""
    controller = Controller(tmp_path, tmp_path)
    allocation = Allocation.of(controller, "run", tmp_path)
    write_atomically(allocation.record, b'{"run": "run", "environ": {"SLURM_CONF": "/etc/slurm.conf"}}')

    def listed() -> list[tuple[str, str]]:
        return [(found.name, run) for found, _, run in left_allocations(controller)]

    at_any_byte(tmp_path, listed, ([(allocation.name, "")],))


def test_what_the_sources_of_hosts_said(tmp_path: Path) -> None:
    """A run goes on with what its first instance heard, or says which file to remove."""
    sources = Inventory.parse("hosts_from: [{command: [echo, '[\"a\"]']}]\n", tmp_path / "inventory.yaml").sources
    (tmp_path / "cache").mkdir()
    asking = Asking(tmp_path, Controller(tmp_path / "run", tmp_path / "cache"), {"PATH": os.environ["PATH"]}, 10.0)

    def said() -> object:
        try:
            return read_for_run(sources, asking, "run")
        except ControllerError as error:
            return error.next_step

    said()
    (kept,) = (tmp_path / "cache").rglob("hosts-*.json")
    at_any_byte(kept.parent, said, ("remove it, and run anew",))
