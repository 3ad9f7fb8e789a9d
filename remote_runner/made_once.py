"""What one of many processes makes, and the others wait for: its result, or its failure, as values in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from remote_runner import errors
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import ControllerError, DeadlineError, RemoteRunnerError
from remote_runner.machine.files import write_atomically


def made_once(
    controller: Controller,
    kept: Path,
    what: str,
    make: Callable[[], dict[str, Any]],
    is_settled: Callable[[], bool],
    deadline: Deadline,
) -> dict[str, Any]:
    """The JSON values in the file `kept`, which the first process that needs them makes, or its failure.

    what: what another process does that is waited for. is_settled: whether there is nothing to be made; it may raise,
    to end the waiting. Raises `DeadlineError` for another's work that takes too long, `ControllerError`.
    """
    if not is_settled():
        lock = controller.lock(f"made-{hashlib.sha256(os.fsencode(kept)).hexdigest()[:24]}")
        try:
            is_ours = lock.acquire_unless(is_settled, deadline)
        except DeadlineError as error:
            raise DeadlineError(f"waiting for another process that {what}", error.seconds) from error
        with lock if is_ours else nullcontext():
            if not is_settled():
                try:
                    values = make()
                except RemoteRunnerError as error:
                    values = {"failure": pack_failure(error)}
                write_atomically(kept, json.dumps(values).encode())
    return kept_values(kept)


def kept_values(kept: Path) -> dict[str, Any]:
    """What `made_once` keeps there. Raises the failure, where it is one, and `ControllerError`."""
    try:
        values: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ControllerError(f"{kept}: cannot be read: {error}", next_step="remove it, and run anew") from error
    if "failure" in values:
        raise unpack_failure(values["failure"])
    return values


def pack_failure(error: RemoteRunnerError) -> dict[str, Any]:
    """The error as JSON values."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(error).items()
        if value is None or isinstance(value, str | int | float | tuple)
    }
    return {"kind": type(error).__name__, "message": error.args[0] if error.args else "", "fields": fields}


def unpack_failure(packed: dict[str, Any]) -> RemoteRunnerError:
    """The error again, of the same kind (or the root, should the kind be gone), with the same message and fields."""
    kind = getattr(errors, packed["kind"], RemoteRunnerError)
    # Not by the constructor: each class words its message in its own way, and this one is worded already.
    error: RemoteRunnerError = kind.__new__(kind, packed["message"])
    for name, value in packed["fields"].items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error
