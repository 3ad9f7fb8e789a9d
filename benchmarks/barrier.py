"""One instance at barriers: started on a host by `benchmarks/ground.py`'s application, with Testground's variables.

    python3 -m benchmarks.barrier COUNT PAUSE_S

meets the run's other instances so often, after one meeting that is not measured, and writes to `$FAR/barriers/` when it
came to each and when it was let go, by the wall clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.sync_load import Client, request


def main(count: int, pause_s: float) -> None:
    """Raises RuntimeError where the service closes the connection."""
    environ = os.environ
    client = Client((environ["SYNC_SERVICE_HOST"], int(environ["SYNC_SERVICE_PORT"])))
    times: list[tuple[float, float]] = []
    for number in range(count + 1):
        state = f"run:{environ['TEST_RUN']}:plan:p:case:c:states:{number}"
        time.sleep(pause_s)  # so that a slow line is used between barriers as well
        came_s = time.time()
        client.socket.sendall(request(signal_entry={"state": state}))
        client.ask(request(barrier={"state": state, "target": int(environ["TEST_INSTANCE_COUNT"])}), answers=2)
        times.append((came_s, time.time()))
    place = Path(environ["FAR"], "barriers")
    place.mkdir(exist_ok=True)
    (place / f"{os.getpid()}").write_text(json.dumps(times[1:]), encoding="ascii")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
