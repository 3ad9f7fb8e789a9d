"""What the real Testground, its sync service and SDK did; README.md says how it was recorded."""

from __future__ import annotations

from pathlib import Path

RECORDINGS = Path(__file__).parent
