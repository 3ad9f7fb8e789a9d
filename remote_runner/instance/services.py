"""Testground's services as an instance's environment names them, and the variables for the application."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from remote_runner.errors import RunEnvironmentError
from remote_runner.inventory.endpoint import Endpoint

SYNC_PORT = 5050
INFLUXDB_PORT = 8086
REDIS_PORT = 6379


@dataclass(frozen=True)
class Service:
    """A service that the run environment names: where it is dialled from this machine."""

    name: str
    near: Endpoint

    def variables(self, dialled: Endpoint, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that tell an application to dial `dialled` for this service."""
        port = str(dialled.port)
        if self.name == "sync":
            return {"SYNC_SERVICE_HOST": dialled.host, "SYNC_SERVICE_PORT": port}
        if self.name == "redis":
            return {"REDIS_HOST": dialled.host, "REDIS_PORT": port}
        url = urlsplit(environ["INFLUXDB_URL"])
        user, at, _ = url.netloc.rpartition("@")
        return {"INFLUXDB_URL": urlunsplit(url._replace(netloc=f"{user}{at}{dialled}"))}


def services_from(environ: Mapping[str, str]) -> tuple[Service, ...]:
    """The services that `environ` names: `SYNC_SERVICE_HOST/PORT`, `INFLUXDB_URL`, `REDIS_HOST/PORT`.

    A service whose variables are absent is not there. Raises `RunEnvironmentError` for an invalid port or URL.
    """
    found = []
    if environ.get("SYNC_SERVICE_HOST") or environ.get("SYNC_SERVICE_PORT"):
        host = environ.get("SYNC_SERVICE_HOST") or "localhost"
        found.append(Service("sync", Endpoint(host, _port(environ, "SYNC_SERVICE_PORT", SYNC_PORT))))
    if environ.get("INFLUXDB_URL"):
        found.append(Service("influxdb", _influxdb(environ["INFLUXDB_URL"])))
    if environ.get("REDIS_HOST"):
        found.append(Service("redis", Endpoint(environ["REDIS_HOST"], _port(environ, "REDIS_PORT", REDIS_PORT))))
    return tuple(found)


# How a program in Rust tells, in its last line, that a name is unknown or a port closed.
_NOT_THERE = re.compile(rb"failed to lookup address information|kind: ConnectionRefused")


# What env(1) says of `#!/usr/bin/env bash` with a carriage return behind it.
_CARRIAGE_RETURN = re.compile(rb"env: .*(\\r|\r)\W")


def advice_for(last_words: bytes, host: str) -> str:
    """What to do about an application that ended with these last words on stderr; "" for others.

    It is known of SDKs that cannot be told where the sync service is (the crate `testground`), and of CRLF scripts.
    """
    if _CARRIAGE_RETURN.search(last_words):
        return (
            "it is a script with Windows line ends (CRLF): save it with Unix line ends (perl -pi -e 's/\\r$//' FILE; "
            "`* text=auto eol=lf` in .gitattributes)"
        )
    if not _NOT_THERE.search(last_words):
        return ""
    return (
        f"if it is on the Rust crate testground, which always dials testground-sync-service:{SYNC_PORT}, put the line "
        f"`127.0.0.1 testground-sync-service` into the hosts file of {host}, and into the inventory "
        f"`service_ports: {{sync: {SYNC_PORT}}}`; else look at its last lines"
    )


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise RunEnvironmentError(name, text, "a TCP port, 1 to 65535")
    return int(text)


def _influxdb(text: str) -> Endpoint:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise _no_url(text) from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise _no_url(text)
    return Endpoint(url.hostname, port or INFLUXDB_PORT)


def _no_url(text: str) -> RunEnvironmentError:
    shown = re.sub(r"[^/]*@", "***@", text)  # there a password may stand
    return RunEnvironmentError("INFLUXDB_URL", shown, "a URL such as http://localhost:8086")
