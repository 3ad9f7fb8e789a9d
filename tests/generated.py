"""What is written from code and kept in the repository; `python -m tests.generated` writes it anew."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.schemas import inventory_schema, manifest_schema, render_markdown

ROOT = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """Each file with the text that it has to have."""
    return {
        ROOT / "remote_runner" / "inventory" / "inventory.schema.json": _json(inventory_schema()),
        ROOT / "testground" / "manifest.schema.json": _json(manifest_schema()),
        **_page("inventory.md", "inventory keys", render_markdown()),
        **_page("commands.md", "tasks", tasks_reference()),
    }


def between(text: str, name: str, written: str) -> str:
    """The page's text with what stands between the marks of a generated part replaced."""
    begin = text.index("-->\n", text.index(f"<!-- {name}: ")) + 4
    return f"{text[:begin]}{written.strip()}\n{text[text.index(f'<!-- end of {name} -->') :]}"


def tasks_reference() -> str:
    """Each task with its options, as `--help` has them."""
    from tasks.collection import ns

    lines: list[str] = []
    for name in sorted(ns.task_names):
        task = ns[name]
        summary = " ".join((task.__doc__ or "").split())
        lines += [f"### {name.removesuffix('.list')}", "", summary, ""]
        options = task.get_arguments()
        if options:
            lines += ["| option | meaning |", "| --- | --- |"]
            for option in options:
                flag = f"--{option.name.replace('_', '-')}"
                meaning = " ".join((option.help or "").split()).replace("|", "\\|")
                lines.append(f"| `{flag}` | {meaning} |")
            lines.append("")
    return re.sub(r"\bfab(?= [a-z-])", "remote-runner", "\n".join(lines))  # as `--help` says it where that was typed


def _page(name: str, part: str, written: str) -> dict[Path, str]:
    path = ROOT / "docs" / name
    return {path: between(path.read_text(encoding="utf-8"), part, written)}


def _json(schema: dict[str, Any]) -> str:
    """With each list of plain values on one line, for those who read the file."""

    def on_one_line(found: re.Match[str]) -> str:
        return "[" + re.sub(r",\n +", ", ", found[1]) + "]"

    text = json.dumps(schema, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n +([^\[\]{}]*?)\n +\]", on_one_line, text) + "\n"


def main() -> int:
    """Write the files anew; with `--check` only say which of them are stale."""
    stale = {path: text for path, text in generated().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if "--check" in sys.argv:
            print(f"{path.name} is stale; write it anew: python -m tests.generated")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if "--check" in sys.argv and stale else 0


if __name__ == "__main__":
    sys.exit(main())
