"""A log of what this process does: each program that it starts, and the steps of connections and instances, with times.

Silent, unless `--debug` or `REMOTE_RUNNER_DEBUG` asks for it. No value of a variable or parameter stands in it, and
nothing that an application says.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from remote_runner.controller import Controller, own_directory
from remote_runner.errors import ControllerError

VARIABLE = "REMOTE_RUNNER_DEBUG"
_MOST_LOGS = 50

_root = logging.getLogger("remote_runner")
_root.addHandler(logging.NullHandler())


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the variable asks for a log: it is there, and neither empty nor 0."""
    return environ.get(VARIABLE, "") not in ("", "0")


def start_log(controller: Controller) -> Path:
    """Write what is logged from now on to a new file of the user's own, in `debug/` of the cache; the oldest ones go.

    A thread writes it, so that a slow disk holds nothing back. Raises `ControllerError`.
    """
    from logging.handlers import QueueHandler, QueueListener
    from queue import SimpleQueue

    directory = own_directory(controller.cache / "debug")
    path = directory / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.log"
    try:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        path.chmod(0o600)
    except OSError as error:
        raise ControllerError(f"{path}: {error.strerror or error}", next_step="leave out --debug") from error
    form = logging.Formatter("%(asctime)s.%(msecs)03dZ %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    file.setFormatter(form)
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    listener = QueueListener(queue, file)
    listener.start()
    atexit.register(listener.stop)
    _root.addHandler(QueueHandler(queue))
    _root.setLevel(logging.DEBUG)
    _root.propagate = False
    with suppress(OSError):
        for old in sorted(directory.iterdir())[:-_MOST_LOGS]:
            old.unlink(missing_ok=True)
    return path


def started_log(controller: Controller) -> str:
    """The same for an instance's process: the file's path, or why there is none, for its message."""
    try:
        return str(start_log(controller))
    except ControllerError as error:
        return f"there is none: {error}"
