"""Files of ours that end at any byte (a full disk, a lost power): made anew, or as if they were not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from remote_runner.instance.record import RECORD_FILE, Record, Step, read_record
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.known import known_of, remember_contact
from remote_runner.inventory.systems import System
from remote_runner.inventory.yaml_tree import parse_yaml
from remote_runner.machine.controller import Controller
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
