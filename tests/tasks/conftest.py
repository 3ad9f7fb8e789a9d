"""A plan whose hosts are this machine and a real sshd, with everything of ours below the test's directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.hosts import TestHost, UserSshd
from tests.tasks.fab import ONE_LINE_FABFILE, PlanDirectory

APP = """\
app:
  name: greeter
  builder: command
  command: cp greeter.sh {out}
"""


@pytest.fixture
def plan(tmp_path: Path, controller: Controller) -> PlanDirectory:
    """A plan with a one-line fabfile and an application; its inventory lists this machine."""
    directory = tmp_path / "plan"
    directory.mkdir()
    made = PlanDirectory(directory)
    made.write("fabfile.py", ONE_LINE_FABFILE)
    made.write("greeter.sh", "#!/bin/sh\necho hello\n").chmod(0o755)
    made.inventory(f"{APP}hosts:\n  localhost:\n    directory: {tmp_path}/near\n")
    return made


@pytest.fixture
def hosts_plan(
    plan: PlanDirectory, user_sshd: UserSshd, known_by_name: Callable[[TestHost], str], tmp_path: Path
) -> PlanDirectory:
    """The same plan with `localhost` and two names, `dex` and `rex`, for one real sshd, in directories of their own."""
    name = known_by_name(user_sshd)
    hosts = "".join(
        f"  {alias}:\n    ssh: {{host: {name}}}\n    labels: [lab]\n    tolerate_s: 10\n"
        f"    directory: {tmp_path}/{alias}\n"
        for alias in ("dex", "rex")
    )
    plan.inventory(f"{APP}hosts:\n  localhost:\n    directory: {tmp_path}/near\n{hosts}")
    return plan
