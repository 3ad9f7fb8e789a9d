from __future__ import annotations

import platform
from pathlib import Path

from remote_runner.machine.whose import started_from


def test_who_started_it_is_login_machine_and_directory() -> None:
    user, _, place = started_from(Path("/plans/ping")).partition("@")
    assert user
    assert place == f"{platform.node()}:/plans/ping"
    assert started_from(Path("/" + "x" * 300)).endswith(":…" + "x" * 199)
