"""What is written from code and kept in the repository; `python -m tests.generated` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remote_runner.inventory.schema import inventory_schema
from testground.manifest_schema import manifest_schema

ROOT = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """Each file with the text that it has to have."""
    return {
        ROOT / "remote_runner" / "inventory" / "inventory.schema.json": _json(inventory_schema()),
        ROOT / "testground" / "manifest.schema.json": _json(manifest_schema()),
    }


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
