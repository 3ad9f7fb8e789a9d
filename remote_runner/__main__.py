"""`python -m remote_runner`: one instance, as `fab instance`, without Fabric (0.1 s less for each)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remote_runner.stop import Stop

# Set by a launcher (exec-go/warm.go) that starts its warm process by the words that start an instance.
WARM_VARIABLE = "REMOTE_RUNNER_WARM"


def main() -> int:
    """Run the instance that the environment describes, of the plan one stands in; the exit status.

    Started as a warm process, it runs the instances of all launchers that come.
    """
    import os

    place = os.environ.pop(WARM_VARIABLE, "")  # noqa: TID251 (the edge of the process)
    if place:
        from remote_runner import warm

        return warm.main(place, run)
    from remote_runner.stop import Stop

    stop = Stop()
    stop.on_signals()
    return run(stop)


def run(stop: Stop) -> int:
    """Run the instance of this process: its environment, its directory."""
    import os
    from pathlib import Path

    from remote_runner.instance.instance import run_instance

    return run_instance(dict(os.environ), Path.cwd(), stop=stop)  # noqa: TID251 (the edge of the process)


if __name__ == "__main__":
    sys.exit(main())
