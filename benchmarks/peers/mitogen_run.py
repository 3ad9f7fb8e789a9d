"""mitogen, one process for all, one connection to each host: `python mitogen_run.py JSON`.

The JSON has `tasks`, each with host, port, user and key; `ssh_args` for all; `command`, a command line for sh.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import mitogen.core
import mitogen.master
import mitogen.select


def run(command: str) -> int:
    """What runs there, once for each task."""
    return subprocess.call(["sh", "-c", command], stdout=subprocess.DEVNULL)


def main(values: dict[str, Any]) -> int:
    """1 unless all end with 0."""
    logging.basicConfig(level=logging.ERROR)
    broker = mitogen.master.Broker()
    router = mitogen.master.Router(broker)
    contexts: dict[tuple[str, int], Any] = {}
    try:
        for task in values["tasks"]:
            where = (task["host"], task["port"])
            if where not in contexts:
                contexts[where] = router.ssh(
                    hostname=task["host"],
                    port=task["port"],
                    username=task["user"],
                    identity_file=task["key"],
                    ssh_args=values["ssh_args"],
                    check_host_keys="ignore",
                    compression=False,
                    python_path="/usr/bin/python3",
                )
        calls = [contexts[task["host"], task["port"]].call_async(run, values["command"]) for task in values["tasks"]]
        return int(any(call.get().unpickle() != 0 for call in calls))
    finally:
        broker.shutdown()
        broker.join()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
