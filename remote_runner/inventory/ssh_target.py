"""An ssh host as a value: its name, and what differs from the user's own ssh configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from remote_runner.errors import HostNameError

# What ssh(1) itself refuses in a host name (OpenSSH ssh.c, valid_hostname): such a name could be an option
# or a shell word where a ProxyCommand or a Match exec uses it.
_FORBIDDEN_CHARACTERS = "'`\"$\\;&<>|(){},"
# ssh.c, valid_ruser: a user's name may hold a backslash (a domain), but not at its end.
_FORBIDDEN_IN_USER = "'`\";&<>|(){}"
# The same as patterns of JSON Schema.
HOST_PATTERN = "^(?!-)[^\\s'`\"$\\\\;&<>|(){},]+$"
USER_PATTERN = "^(?!-)[^\\s'`\";&<>|(){}]*[^\\s'`\";&<>|(){}\\\\]$"


@dataclass(frozen=True)
class SshTarget:
    """What ssh is asked for; `None` and empty leave it to the user's ssh configuration.

    `name` is the inventory's name, `host` what stands on ssh's command line, `options` further `-o` pairs.
    Raises `HostNameError` for anything that could be read as an option or as a shell word.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_host_name(self.name)
        check_host_name(self.host)
        if self.user is not None:
            check_user_name(self.user)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise HostNameError(str(self.port), "a port is a number from 1 to 65535")
        if self.identity_file is not None and (not self.identity_file or _has_control(self.identity_file)):
            raise HostNameError(self.identity_file, "an identity file is a path without control characters")
        for key, value in self.options:
            if not (key.isascii() and key.isalnum()):
                raise HostNameError(key, "an ssh option's name is made of letters and digits")
            if _has_control(value):
                raise HostNameError(value, f"the value of the ssh option {key} holds a control character")

    def missing_identity_file(self) -> Path | None:
        """The identity file, if nothing is there; a path with `%`, which ssh fills in, is not looked for."""
        if self.identity_file is None or "%" in self.identity_file:
            return None
        try:
            path = Path(self.identity_file).expanduser()
            return None if path.exists() else path
        except (OSError, RuntimeError):  # no right to look, no home
            return None

    @classmethod
    def from_name(cls, name: str) -> Self:
        """The host that `ssh NAME` reaches at the user's prompt; `USER@HOST` is understood as ssh does."""
        user, at, host = name.rpartition("@")
        return cls(name=name, host=host, user=user) if at else cls(name=name, host=name)


def check_host_name(name: str) -> str:
    """The name. Raises `HostNameError` unless it can be handed to ssh as a host."""
    _check_word(name, "a host's name", _FORBIDDEN_CHARACTERS)
    return name


def check_user_name(name: str) -> str:
    """The name. Raises `HostNameError` unless it can be handed to ssh as a user."""
    _check_word(name, "a user's name", _FORBIDDEN_IN_USER)
    if name.endswith("\\"):
        raise HostNameError(name, "a user's name does not end with a backslash")
    return name


def _check_word(value: str, what: str, forbidden: str) -> None:
    if not value:
        raise HostNameError(value, f"{what} is not empty")
    if value.startswith("-"):
        raise HostNameError(value, f"{what} does not start with '-' (ssh would read it as an option)")
    if any(character.isspace() for character in value) or _has_control(value):
        raise HostNameError(value, f"{what} holds no spaces, newlines or control characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise HostNameError(value, f"{what} holds no bytes that are no UTF-8")
    for character in value:
        if character in forbidden:
            raise HostNameError(value, f"{what} does not hold {character!r} (ssh refuses it)")


def _has_control(value: str) -> bool:
    return any(ord(character) < 0x20 or ord(character) == 0x7F for character in value)
