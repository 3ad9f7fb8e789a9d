"""The example plan and the launcher's sources: those of the checkout, or the copies that a wheel brings along."""

from __future__ import annotations

from pathlib import Path

PARTS = ("manifest.toml", "inventory.yaml", "node", "exec-go", "go.mod")
"""What a wheel brings along of it (setup.py)."""

_PACKAGE = Path(__file__).resolve().parent


def example_plan() -> Path:
    """The directory that has these parts."""
    released = _PACKAGE / "example"
    return released if released.is_dir() else _PACKAGE.parent


def testground_package() -> Path:
    """The SDK that the example's application is built with."""
    return _PACKAGE.parent / "testground"
