"""Conversations between a client and an agent, as they were recorded: what both sides' code is held against.

`python -m tests.protocol` records them anew, with the agent of this checkout, which is only right when docs/protocol.md
has changed. Each frame stands with its bytes (hex) and with what they mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONVERSATION = Path(__file__).parent / "conversation.json"


def recorded() -> dict[str, list[dict[str, Any]]]:
    """The frames of each side (`client`, `agent`), in their order."""
    found: dict[str, list[dict[str, Any]]] = json.loads(CONVERSATION.read_text(encoding="utf-8"))
    return found
