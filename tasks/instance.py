"""`fab instance`: what Testground's `local:exec` starts, once for each instance."""

from __future__ import annotations

import invoke

from tasks.command_line.task import Failed, task


@task(help={})
def instance(c: invoke.Context) -> None:
    """Run the instance that the TEST_* environment describes (Testground's local:exec calls this)."""
    from remote_runner.__main__ import main

    status = main()
    if status:
        raise Failed(None, status)
