"""`remote-runner` that does not look: no samples of hosts and instances, no page. The rows of `watching.py` use it."""

from __future__ import annotations

from remote_runner.truth.observation import Observation
from tasks import local
from tasks.main import main


async def _nothing(*_: object) -> None:
    pass


# The product has no switch for this: only the benchmark wants a run that looks at nothing.
Observation._look = Observation._end = _nothing  # type: ignore[assignment]
local.show_report = lambda *_: None
main()
