"""The README says what is true: its table of inventory keys, its tasks, the files it names.

`python -m tests.test_readme` writes the table anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.report import BEGIN as BENCHMARKS_BEGIN
from benchmarks.report import END as BENCHMARKS_END
from benchmarks.rows import WORKS
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.keys import render_markdown

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
_BEGIN, _END = "<!-- inventory keys: ", "<!-- end of inventory keys -->"


def with_inventory_keys(text: str) -> str:
    """The README's text with the section of inventory keys as the code has it."""
    begin = text.index("-->\n", text.index(_BEGIN)) + 4
    return f"{text[:begin]}{render_markdown().strip()}\n{text[text.index(_END) :]}"


def test_the_inventory_keys_are_those_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_inventory_keys(text), "write it anew: python -m tests.test_readme"


def test_the_page_of_the_benchmarks_tells_of_rows_that_there_are() -> None:
    text = PERFORMANCE.read_text(encoding="utf-8")
    section = text[text.index(BENCHMARKS_BEGIN) : text.index(BENCHMARKS_END)]
    told = re.findall(r"^\| (.+?) \| (.+?) \|", section, re.MULTILINE)[2:]
    known = [work.title for work in WORKS]
    assert told, "make bench, then python -m benchmarks.page"
    assert [work for work, _ in told] == [title for title in known if title in dict(told)]
    assert all(re.match(r"\d", measured) for _, measured in told)


def test_every_task_stands_in_it() -> None:
    from tasks import ns

    text = README.read_text(encoding="utf-8")
    for name in ns.task_names:
        name = name.removesuffix(".list")
        assert re.search(rf"fab (-H \S+ )?{re.escape(name)}\b", text), f"no example of fab {name}"


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_it_names_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    rooms = "agent|tasks|remote_runner|testground|node|tests|benchmarks|stubs"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        assert name == "benchmarks/results/" or (ROOT / name).exists(), (
            f"{document} names {name}"
        )  # make bench makes it


def test_its_inventory_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(app:.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "inventory.yaml").write_text(example, encoding="utf-8")
    inventory = Inventory.load(tmp_path)
    assert [host.name for host in inventory.hosts] == ["localhost", "dex", "pi"]
    assert inventory.hosts[2].pass_through == ("LANG",)


if __name__ == "__main__":
    README.write_text(with_inventory_keys(README.read_text(encoding="utf-8")), encoding="utf-8")
