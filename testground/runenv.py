"""The run environment: what Testground tells an instance, in `TEST_*` variables and a few others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from testground.errors import ParamError, RunEnvError, TestgroundError

if TYPE_CHECKING:
    from datetime import datetime

SYNC_SERVICE_PORT = 5050
INFLUXDB_URL = "http://localhost:8086"


@dataclass(frozen=True)
class ServiceAddress:
    """Where a service is dialled from here: a host name or address, and a TCP port."""

    host: str
    port: int


@dataclass(frozen=True)
class RunEnv:
    """All that an instance is told, by `TEST_*` name; the order is that of importance, not of the environment."""

    plan: str
    case: str
    run: str
    group_id: str
    instance_count: int
    group_instance_count: int
    outputs_path: Path
    temp_path: Path
    params: Mapping[str, str] = field(default_factory=dict)
    start_time: str = ""  # RFC 3339
    subnet: str = ""
    sidecar: bool = False
    disable_metrics: bool = False
    instance_role: str = ""
    capture_profiles: Mapping[str, str] = field(default_factory=dict)
    repo: str = ""
    branch: str = ""
    tag: str = ""
    sync_service_host: str = "testground-sync-service"
    sync_service_port: int = SYNC_SERVICE_PORT
    influxdb_url: str = ""
    redis_host: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RunEnv:
        """Read the variables; those that no runner leaves out must be there. Raises `RunEnvError`."""
        return cls(
            plan=_required(environ, "TEST_PLAN", "the plan's name"),
            case=_required(environ, "TEST_CASE", "the test case's name"),
            run=_required(environ, "TEST_RUN", "the run's id"),
            group_id=_required(environ, "TEST_GROUP_ID", "the group's id"),
            instance_count=_count(environ, "TEST_INSTANCE_COUNT"),
            group_instance_count=_count(environ, "TEST_GROUP_INSTANCE_COUNT"),
            outputs_path=Path(_required(environ, "TEST_OUTPUTS_PATH", "the directory of the instance's outputs")),
            temp_path=Path(_required(environ, "TEST_TEMP_PATH", "the instance's temporary directory")),
            params=_packed(environ, "TEST_INSTANCE_PARAMS"),
            start_time=environ.get("TEST_START_TIME", ""),
            subnet=environ.get("TEST_SUBNET", ""),
            sidecar=_flag(environ, "TEST_SIDECAR"),
            disable_metrics=_flag(environ, "TEST_DISABLE_METRICS"),
            instance_role=environ.get("TEST_INSTANCE_ROLE", ""),
            capture_profiles=_packed(environ, "TEST_CAPTURE_PROFILES"),
            repo=environ.get("TEST_REPO", ""),
            branch=environ.get("TEST_BRANCH", ""),
            tag=environ.get("TEST_TAG", ""),
            # The SDKs' own default, for an environment that names no service.
            sync_service_host=environ.get("SYNC_SERVICE_HOST") or "testground-sync-service",
            sync_service_port=_port(environ, "SYNC_SERVICE_PORT", SYNC_SERVICE_PORT),
            influxdb_url=environ.get("INFLUXDB_URL", ""),
            redis_host=environ.get("REDIS_HOST", ""),
        )

    def to_environ(self, *, path: str) -> dict[str, str]:
        """The environment that `local:exec` hands over, nothing else in it (recordings/environment.txt).

        `path` is `PATH`. `SYNC_SERVICE_PORT` is told only where it is not the usual one. Raises what `pack_params`
        raises.
        """
        environ = {
            "TEST_PLAN": self.plan,
            "TEST_CASE": self.case,
            "TEST_RUN": self.run,
            "TEST_GROUP_ID": self.group_id,
            "TEST_GROUP_INSTANCE_COUNT": str(self.group_instance_count),
            "TEST_INSTANCE_COUNT": str(self.instance_count),
            "TEST_INSTANCE_ROLE": self.instance_role,
            "TEST_INSTANCE_PARAMS": pack_params(self.params),
            "TEST_CAPTURE_PROFILES": pack_params(self.capture_profiles),
            "TEST_OUTPUTS_PATH": str(self.outputs_path),
            "TEST_TEMP_PATH": str(self.temp_path),
            "TEST_START_TIME": self.start_time,
            "TEST_SUBNET": self.subnet,
            "TEST_SIDECAR": str(self.sidecar).lower(),
            "TEST_DISABLE_METRICS": str(self.disable_metrics).lower(),
            "TEST_REPO": self.repo,
            "TEST_BRANCH": self.branch,
            "TEST_TAG": self.tag,
            "INFLUXDB_URL": self.influxdb_url,
            "REDIS_HOST": self.redis_host,
            "SYNC_SERVICE_HOST": self.sync_service_host,
            "PATH": path,
        }
        if self.sync_service_port != SYNC_SERVICE_PORT:
            environ["SYNC_SERVICE_PORT"] = str(self.sync_service_port)
        return environ

    def to_start_event(self) -> dict[str, object]:
        """What the SDKs tell of the run environment in a start event, in their order."""
        told: dict[str, object] = {
            "plan": self.plan,
            "case": self.case,
            "run": self.run,
            "params": {name: self.params[name] for name in sorted(self.params)},
            "instances": self.instance_count,
            "outputs_path": str(self.outputs_path),
            "temp_path": str(self.temp_path),
            "network": self.subnet,
            "group": self.group_id,
            "group_instances": self.group_instance_count,
        }
        given = {"repo": self.repo, "branch": self.branch, "tag": self.tag}
        return told | {name: value for name, value in given.items() if value}

    @property
    def sync_service(self) -> ServiceAddress:
        """Where the sync service listens."""
        return ServiceAddress(self.sync_service_host, self.sync_service_port)

    @property
    def influxdb(self) -> ServiceAddress | None:
        """Where InfluxDB listens; None where no URL is given. Raises `RunEnvError`."""
        if not self.influxdb_url:
            return None
        found = re.fullmatch(r"(https?)://(?:[^/@]*@)?(\[[^]/]+\]|[^:/]+)(?::(\d{1,5}))?(?:/.*)?", self.influxdb_url)
        if found is None or int(found[3] or 0) > 65535:
            raise RunEnvError("INFLUXDB_URL", self.influxdb_url, f"a URL such as {INFLUXDB_URL}")
        return ServiceAddress(found[2].strip("[]"), int(found[3] or {"http": 80, "https": 443}[found[1]]))

    @property
    def started_at(self) -> datetime:
        """`TEST_START_TIME` as a time. Raises `RunEnvError`."""
        from datetime import datetime

        try:
            return datetime.fromisoformat(self.start_time)
        except ValueError as error:
            raise RunEnvError("TEST_START_TIME", self.start_time, "a time such as 2026-11-24T02:00:53Z") from error

    # The parameters, read as the SDKs read them; each raises `ParamError` where it is missing or of another kind.

    def is_param_set(self, name: str) -> bool:
        """Whether the parameter was given or has a default in the manifest."""
        return name in self.params

    def string_param(self, name: str) -> str:
        """The parameter's text."""
        return self._param(name, "a value")

    def int_param(self, name: str) -> int:
        """A whole number."""
        value = self._param(name, "a whole number")
        if re.fullmatch(r"[+-]?[0-9]{1,4000}", value) is None:  # of more digits Python makes no number
            raise ParamError(name, value, "a whole number")
        return int(value)

    def float_param(self, name: str) -> float:
        """A number."""
        value = self._param(name, "a number")
        try:
            return float(value)
        except ValueError as error:
            raise ParamError(name, value, "a number") from error

    def bool_param(self, name: str) -> bool:
        """`true` or `false`, in any case; one that is not set is false, as in the SDKs."""
        value = self.params.get(name, "false")
        if value.lower() not in ("true", "false"):
            raise ParamError(name, value, "true or false")
        return value.lower() == "true"

    def json_param(self, name: str) -> object:
        """Any JSON."""
        value = self._param(name, "JSON")
        try:
            found: object = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ParamError(name, value, f"JSON ({error})") from error
        return found

    def string_array_param(self, name: str) -> tuple[str, ...]:
        """A JSON list of strings."""
        found = self.json_param(name)
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise ParamError(name, self.params[name], 'a JSON list of strings such as ["a","b"]')
        return tuple(found)

    def size_param(self, name: str) -> int:
        """A size in bytes, written `10 MB` (1000 × 1000) or `10MiB` (1024 × 1024)."""
        expected = "a size such as 512, 10MB or 4 KiB"
        value = self._param(name, expected)
        found = re.fullmatch(r"\s*([0-9][0-9,]*(?:\.[0-9]*)?)\s*([kmgtpe]?)(i?)b?\s*", value, re.IGNORECASE)
        if found is None or (found[3] and not found[2]):
            raise ParamError(name, value, expected)
        power = "kmgtpe".index(found[2].lower()) + 1 if found[2] else 0
        size = float(found[1].replace(",", "")) * (1024 if found[3] else 1000) ** power
        if not size < 2**64:  # what the Go SDK has for it
            raise ParamError(name, value, f"{expected}, less than 16 EiB")
        return int(size)

    def duration_s_param(self, name: str) -> float:
        """A time span in seconds, written as in Go: `300ms`, `1h2m3.5s`."""
        expected = "a time span such as 300ms or 1m30s"
        value = self._param(name, expected)
        number_unit = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)"
        if value.lstrip("+-") == "0":
            return 0.0
        if re.fullmatch(rf"[+-]?(?:{number_unit})+", value) is None:
            raise ParamError(name, value, expected)
        total_s = sum(float(number) * _UNIT_S[unit] for number, unit in re.findall(number_unit, value))
        return -total_s if value.startswith("-") else total_s

    def _param(self, name: str, expected: str) -> str:
        if name not in self.params:
            raise ParamError(name, None, expected)
        return self.params[name]


_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def pack_params(params: Mapping[str, str]) -> str:
    """The parameters as Testground packs them, `k=v|k=v`, sorted by name, values as they are.

    The packing has no escaping: a value with `|b=c` in it arrives as two parameters, under Testground as well.
    Raises `TestgroundError` for a name that none could arrive under.
    """
    for name in params:
        if not name or "|" in name or "=" in name:
            raise TestgroundError(
                f"test parameter {name!r} would not reach an instance under this name: "
                "Testground packs parameters as k=v|k=v, without escaping",
                next_step="give it a name without | and =",
            )
    return "|".join(f"{name}={params[name]}" for name in sorted(params))


def unpack_params(packed: str) -> dict[str, str]:
    """Read `k=v|k=v` tolerantly: split at the first `=`; a piece without one continues the value before it.

    Raises `ValueError` where the first piece has no `=`.
    """
    params: dict[str, str] = {}
    last = ""
    for piece in packed.split("|") if packed else ():
        name, equals, value = piece.partition("=")
        if equals:
            last = name
            params[name] = value
        elif params:
            params[last] += f"|{piece}"
        else:
            raise ValueError(piece)
    return params


def _required(environ: Mapping[str, str], variable: str, expected: str) -> str:
    value = environ.get(variable)
    if not value:
        raise RunEnvError(variable, value, expected)
    return value


def _count(environ: Mapping[str, str], variable: str) -> int:
    value = _required(environ, variable, "a number of instances, 1 or more")
    if re.fullmatch(r"[0-9]{1,18}", value) is None or int(value) < 1:
        raise RunEnvError(variable, value, "a number of instances, 1 or more")
    return int(value)


def _port(environ: Mapping[str, str], variable: str, default: int) -> int:
    value = environ.get(variable)
    if not value:
        return default
    if re.fullmatch(r"[0-9]{1,5}", value) is None or not 0 < int(value) < 65536:
        raise RunEnvError(variable, value, "a TCP port, 1 to 65535")
    return int(value)


# As Go's strconv.ParseBool, by which the SDKs read.
_FLAGS = {"1": True, "t": True, "true": True, "": False, "0": False, "f": False, "false": False}


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    value = environ.get(variable, "")
    if value.lower() not in _FLAGS:
        raise RunEnvError(variable, value, "true or false")
    return _FLAGS[value.lower()]


def _packed(environ: Mapping[str, str], variable: str) -> dict[str, str]:
    value = environ.get(variable, "")
    try:
        return unpack_params(value)
    except ValueError as error:
        raise RunEnvError(variable, value, "pairs such as name=value|name=value") from error
