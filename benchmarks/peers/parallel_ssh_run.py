"""parallel-ssh (libssh2), one process for all: `python parallel_ssh_run.py JSON`.

The JSON has `tasks`, each with host, port, user and key, and either `command`, or `copy`: a path there and one here to
fetch it to, or (`push`) the other way round.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pssh.clients import ParallelSSHClient
from pssh.config import HostConfig


def main(values: dict[str, Any]) -> int:
    """Print every line that commands print; 1 unless all end with 0."""
    tasks = values["tasks"]
    configs = [HostConfig(user=task["user"], port=task["port"], private_key=task["key"]) for task in tasks]
    client = ParallelSSHClient(
        [task["host"] for task in tasks],
        host_config=configs,
        pool_size=len(tasks),
        allow_agent=False,
        num_retries=30,  # sshd drops connections at random while many are at the door
        retry_delay=0.2,
    )
    if "copy" in values:
        far, near = values["copy"]
        copies = client.copy_file(near, far) if values["push"] else client.copy_remote_file(far, near, recurse=True)
        for copy in copies:
            copy.get()
        return 0
    outputs = client.run_command(values["command"])
    for output in outputs:
        for line in output.stdout:
            print(line)
    client.join(outputs)
    return int(any(output.exit_code != 0 for output in outputs))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
