"""File names from names that others chose."""

from __future__ import annotations

import hashlib
import os
import re


def safe_name(text: str) -> str:
    """The text as one file name of at most 113 characters, different for different texts."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:100].lstrip(".-")
    return safe if safe and safe == text else f"{safe or 'run'}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"
