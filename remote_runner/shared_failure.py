"""An error as a value, so that processes which wait for one step share its failure as they share its result."""

from __future__ import annotations

from typing import Any

from remote_runner import errors
from remote_runner.errors import RemoteRunnerError


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
    # Not by the constructor: each leaf words its message in its own way, and this one is worded already.
    error: RemoteRunnerError = kind.__new__(kind, packed["message"])
    for name, value in packed["fields"].items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error
