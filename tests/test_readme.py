"""README and docs say what is true: what is generated, the files they name, the tasks there are.

What their console examples print is held by tests/integration/test_documents.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import BEGIN as BENCHMARKS_BEGIN
from benchmarks.report import END as BENCHMARKS_END
from benchmarks.rows import WORKS
from remote_runner.inventory.inventory import Inventory

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_what_is_written_from_code_is_as_the_code_has_it() -> None:
    # In a process of its own: invoke takes an option's help out of its task when it is asked for the first time.
    stale = subprocess.run(
        [sys.executable, "-m", "tests.generated", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert stale.returncode == 0, stale.stdout + stale.stderr


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_page_of_the_benchmarks_tells_of_rows_that_there_are() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    section = text[text.index(BENCHMARKS_BEGIN) : text.index(BENCHMARKS_END)]
    told = re.findall(r"^\| (.+?) \| (.+?) \|", section, re.MULTILINE)[2:]
    known = [work.title for work in WORKS]
    assert told, "make bench, then python -m benchmarks.page"
    assert [work for work, _ in told] == [title for title in known if title in dict(told)]
    assert all(re.match(r"\d", measured) for _, measured in told)


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_it_names_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    rooms = "agent|tasks|remote_runner|testground|node|tests|benchmarks|stubs"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        assert name == "benchmarks/results/" or (ROOT / name).exists(), (
            f"{document} names {name}"
        )  # make bench makes it


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/faults.md"])
def test_the_tests_behind_its_promises_are_there(document: str) -> None:
    """Below tests/, as SECURITY.md says."""
    text = (ROOT / document).read_text(encoding="utf-8")
    below = ("", "tests/", "tests/remote_runner/", "agent/internal/")
    named = re.findall(r"`([\w/]*(?:test_\w+\.py|\w+_test\.go))`", text)
    assert len(named) >= 10
    for name in named:
        assert any((ROOT / place / name).exists() for place in below), f"{document} names {name}"


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s:]+)[^):]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_example_of_an_inventory_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "inventory.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(app:.*?)```", text, re.DOTALL)
    (tmp_path / "inventory.yaml").write_text(example, encoding="utf-8")
    inventory = Inventory.load(tmp_path)
    assert [host.name for host in inventory.hosts] == ["localhost", "dex", "pi"]
    assert inventory.hosts[2].pass_through == ("LANG",)
