"""Many processes at once on one host, as instances are; a program of its own, so that forking is harmless.

python -m tests.remote_runner.crowd COUNT < target-as-json: each process opens one long session, none goes on before
all are open, then each sends its number through it and reads it back. Prints one JSON object: seconds and errors.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import RemoteRunnerError
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.masters import SshHost


def target_to_json(target: SshTarget) -> str:
    return json.dumps(asdict(target))


def target_from_json(text: str) -> SshTarget:
    fields = json.loads(text)
    return SshTarget(**{**fields, "options": tuple((key, value) for key, value in fields["options"])})


def one(number: int, target: SshTarget, opened: int, go_on: int) -> str:
    """What went wrong, or nothing."""
    controller = Controller.from_environ(os.environ)
    try:
        with SshHost(target, controller, os.environ, connect_s=60) as host, host.start_session("cat") as session:
            session.wait_opened(Deadline.after(60))
            os.write(opened, b".")
            os.read(go_on, 1)
            os.write(session.stdin_fd, b"%d" % number)
            session.close_stdin()
            said = os.read(session.stdout_fd, 100)
            status = session.wait_exit(Deadline.after(60))
            return "" if (said, status) == (b"%d" % number, 0) else f"{said!r}, status {status}"
    except RemoteRunnerError as error:
        os.write(opened, b"!")
        return f"{type(error).__name__}: {error}"


def main(count: int, target: SshTarget) -> None:
    opened, opened_write = os.pipe()
    go_on, go_on_write = os.pipe()
    reports, report_write = os.pipe()
    began_s = time.monotonic()
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(go_on_write)
            error = one(number, target, opened_write, go_on)
            if error:
                os.write(report_write, f"{number}: {error}\0".encode())
            os._exit(0)
        children.append(pid)
    os.close(report_write)
    at_once = sum(os.read(opened, 1) == b"." for _ in range(count))
    opened_s = time.monotonic() - began_s
    os.close(go_on_write)
    with os.fdopen(reports, "rb") as file:
        errors = [text.decode() for text in file.read().split(b"\0") if text]
    for pid in children:
        os.waitpid(pid, 0)
    print(json.dumps({"at_once": at_once, "opened_s": opened_s, "all_s": time.monotonic() - began_s, "errors": errors}))


if __name__ == "__main__":
    main(int(sys.argv[1]), target_from_json(sys.stdin.read()))
