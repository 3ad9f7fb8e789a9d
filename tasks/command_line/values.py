"""What an option's text means: a number, a time, pairs, an address."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tasks.command_line.task import Failed
from testground.errors import shortened
from testground.runenv import ServiceAddress

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def positive(text: str | int, option: str) -> int:
    """A whole number of 1 or more from an option's text; raises `Failed`."""
    if not (str(text).isascii() and str(text).isdecimal()) or len(str(text)) > 18 or int(text) < 1:
        raise Failed(f"--{option} is {shortened(str(text))}; expected a whole number, 1 or more")
    return int(text)


def seconds(text: str, option: str) -> float:
    """A time as an option has it: 90s, 15m, 2h, 3d."""
    given = re.fullmatch(r"(\d+)([smhd])", text)
    if given is None:
        name = option.replace("_", "-")
        raise Failed(f"--{name} is {text!r}; expected a number and s, m, h or d, like 2h")
    return float(given[1]) * _UNITS_S[given[2]]


def pairs(given: Sequence[str], option: str, value: str = "VALUE") -> list[tuple[str, str]]:
    """Names and values of `NAME=VALUE`, as often as it was given."""
    found = []
    for item in given:
        name, equals, text = item.partition("=")
        if not name or not equals:
            raise Failed(f"--{option} is {item!r}; expected NAME={value}")
        found.append((name, text))
    return found


def sync_address(text: str) -> ServiceAddress:
    """Where a sync service is."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise Failed(f"--sync-service is {text!r}; expected HOST:PORT")
    return ServiceAddress(host.strip("[]"), int(port))
