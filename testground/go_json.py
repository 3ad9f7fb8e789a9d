"""JSON as Go's encoding/json writes it, which is how Testground's daemon passes on values other than strings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time

# Go escapes these in every string, so that the JSON may stand in HTML and JavaScript.
_HTML = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def marshal(value: object) -> str:
    """The value on one line, without spaces, mappings sorted by key; dates as RFC 3339 strings.

    Raises `ValueError` for what JSON has no word for (inf, nan), `TypeError` for other kinds of values.
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(_HTML)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{marshal(str(key))}:{marshal(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(marshal, value)) + "]"
    if isinstance(value, datetime | date | time):
        return f'"{rfc3339(value)}"'
    raise TypeError(f"{type(value).__name__} has no JSON")


def rfc3339(value: datetime | date | time) -> str:
    """The time as Go writes it: UTC is Z, a fraction of a second has no zeros at its end."""
    text = value.isoformat().replace("+00:00", "Z")
    found = re.search(r"\.\d+", text)
    return text.replace(found[0], found[0].rstrip("0")) if found else text


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{value} has no JSON")
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    mantissa, _, exponent = repr(value).partition("e")
    if not 1e-6 <= abs(value) < 1e21:
        digits = mantissa.removesuffix(".0")
        power = int(exponent)
        return f"{digits}e{'+' if power > 0 else '-'}{abs(power)}"
    if not exponent:
        return mantissa.removesuffix(".0")
    from decimal import Decimal

    return f"{Decimal(repr(value)):f}"
