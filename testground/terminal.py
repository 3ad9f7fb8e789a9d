"""Making untrusted text safe to print on a terminal."""

from __future__ import annotations

import re

# Control characters but newline and tab: C0, DEL and C1 (ECMA-48), among which are ESC and CSI; what turns the
# direction of writing around (UAX #9), so that a line reads otherwise than it is; bytes that are no UTF-8 (surrogates).
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """The text with every character that could do something to a terminal shown as its number (`\\x1b`)."""
    return text if text.isprintable() else _HARMFUL.sub(_shown, text)


def harmless_json(text: str) -> str:
    """The same for JSON, where the numbers are JSON's own: what is read back stays as it was."""
    return text if text.isprintable() else _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
