from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_runner.artifact.nix.artifact import TABLE_VARIABLE
from remote_runner.artifact.nix.table import table_of
from remote_runner.artifact.nix.verbs import Package
from remote_runner.errors import RunEnvironmentError

HASH = "lkyfm145g4r8vlwpaps9cncfhi249k00"
ROW = {"drv": f"/nix/store/{HASH}-node.drv", "out": f"/nix/store/{HASH}-node", "program": "bin/node"}


def table(tmp_path: Path, content: object) -> dict[str, str]:
    file = tmp_path / "table.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return {TABLE_VARIABLE: str(file)}


def test_a_table_says_the_packages_of_its_application(tmp_path: Path) -> None:
    environ = table(tmp_path, {"app": "node", "systems": {"aarch64-darwin": ROW}})
    assert table_of(environ, "node") == {"aarch64-darwin": Package(ROW["drv"], ROW["out"], "", "bin/node")}
    assert table_of(environ, "other") == {}
    assert table_of({}, "node") == {}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        [],
        {"app": "node"},
        {"app": "node", "systems": []},
        {"app": "node", "systems": {"x86_64-linux": {"drv": ROW["drv"], "out": ROW["out"]}}},
        {"app": "node", "systems": {"x86_64-linux": {**ROW, "out": "/tmp/node"}}},
        {"app": "node", "systems": {"x86_64-linux": {**ROW, "drv": None}}},
    ],
)
def test_what_is_no_table_is_an_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(RunEnvironmentError, match=f"{TABLE_VARIABLE} is .*a table of artifacts as JSON"):
        table_of(table(tmp_path, content), "node")


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunEnvironmentError, match="No such file"):
        table_of({TABLE_VARIABLE: str(tmp_path / "absent")}, "node")
