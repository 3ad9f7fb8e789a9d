"""What the scripts that take an artifact say went wrong, in the words of our errors."""

from __future__ import annotations

from remote_runner.errors import (
    FarDiskFullError,
    FarReadOnlyError,
    FarToolMissingError,
    HostError,
    NamespaceRefusedError,
    NoFarDirectoryError,
    PushFailedError,
)


def push_fault(host: str, word: str, rest: str) -> HostError:
    """The error for an answer other than that the artifact is there; `rest` are the host's own words."""
    if word == "no-tool":
        return FarToolMissingError(host, rest)
    if word == "quiet":
        return PushFailedError(
            host,
            "nothing of the artifact came there any more, for longer than tolerate_s, so the host gave it up",
            next_step="run it again; where the line or this machine is slow, give the host a longer tolerate_s",
        )
    if word == "refused":
        return NamespaceRefusedError(host, rest)
    full = "raise the quota or make room there, name another place with `directory`, or lower `cache_limit`"
    read_only = "name another `directory` (inventory.yaml)"
    if (fault := disk_fault(host, rest, full=f"{full} (inventory.yaml)", read_only=read_only)) is not None:
        return fault
    if word == "no-directory":
        next_step = "name one with `directory` in inventory.yaml: the user's own, where programs can be started"
        return NoFarDirectoryError(host, "no directory there will do", stderr=rest, next_step=next_step)
    return PushFailedError(host, "the artifact did not arrive whole", stderr=rest)


def disk_fault(host: str, said: str, *, full: str, read_only: str) -> PushFailedError | None:
    """The error for a program's words when a disk took no more, else `None`; `full`, `read_only`: the next steps."""
    for text, kind, what, next_step in (
        ("no space left", FarDiskFullError, "there is no room for the artifact", full),
        ("quota exceeded", FarDiskFullError, "there is no room for the artifact", full),
        ("read-only file system", FarReadOnlyError, "the file system there is read-only", read_only),
    ):
        if text in said.lower():
            return kind(host, what, stderr=said, next_step=next_step)
    return None
