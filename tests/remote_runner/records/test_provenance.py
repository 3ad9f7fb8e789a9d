"""What made a run."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from remote_runner.inventory.inventory import Inventory
from remote_runner.records.provenance import inventory_value, provenance, revision
from tests.hosts import which


def test_the_versions_are_those_of_this_installation(tmp_path: Path) -> None:
    made = provenance(tmp_path, {"PATH": "/nowhere"})
    assert made["versions"]["remote-runner"] == version("testground-remote-runner")
    assert made["versions"]["ssh"] is None
    assert made["machine"]["name"] == os.uname().nodename
    assert made["plan"] == {"revision": None, "clean": None, "changes": []}


def test_a_plan_in_git_has_its_commit_and_what_differs_from_it(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def git(*words: str) -> str:
        argv = [
            which("git"),
            "-C",
            str(tmp_path / "plan"),
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@example.org",
            *words,
        ]
        return subprocess.run(argv, env=environ, check=True, capture_output=True, text=True).stdout

    (tmp_path / "plan").mkdir()
    git("init", "-q")
    (tmp_path / "plan" / "manifest.toml").write_text("name = 'p'\n")
    git("add", "manifest.toml")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert revision(tmp_path / "plan", environ) == {"revision": commit, "clean": True, "changes": []}
    (tmp_path / "plan" / "new").write_text("")
    assert revision(tmp_path / "plan", environ) == {"revision": commit, "clean": False, "changes": ["?? new"]}


def test_the_inventory_is_kept_with_all_settings_of_the_hosts_that_were_used(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text("hosts:\n  dex: {slots: 3, env: {A: b}}\n  rex:\n")
    value = inventory_value(Inventory.load(tmp_path, cache=tmp_path), ["dex", "dex"])
    assert value["listed"] == [{"name": "dex", "slots": 3}, {"name": "rex", "slots": 1}]
    assert [*value["hosts"]] == ["dex"]
    assert value["hosts"]["dex"]["env"] == {"A": "b"}
