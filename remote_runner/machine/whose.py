"""Who starts something from here, for the records of it on other machines."""

from __future__ import annotations

import functools
import os
import platform
import pwd
from pathlib import Path

_LONGEST = 200


def started_from(directory: Path) -> str:
    """The login, this machine and the directory: `ada@lab:/home/ada/plan`; of a long one its end."""
    place = str(directory)
    shown = place if len(place) <= _LONGEST else f"…{place[1 - _LONGEST :]}"
    return f"{_login()}@{platform.node()}:{shown}"


@functools.cache  # for each instance, and a directory service may take its time
def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
