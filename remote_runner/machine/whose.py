"""Who starts something from here, for the records of it on other machines."""

from __future__ import annotations

import os
import platform
import pwd
from pathlib import Path

_LONGEST = 200


def started_from(directory: Path) -> str:
    """The login, this machine and the directory: `ada@lab:/home/ada/plan`; of a long one its end."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    place = str(directory)
    shown = place if len(place) <= _LONGEST else f"…{place[1 - _LONGEST :]}"
    return f"{user}@{platform.node()}:{shown}"
