"""A plan's hosts and application, read from its `inventory.yaml`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from remote_runner.errors import HostNameError, InventoryError, RemoteRunnerError, did_you_mean
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.keys import Place, keys_of, read_keys
from remote_runner.inventory.kinds import At, Builder, BuildOn, ForwardUsers, OnUnreachable, StoreChoice, nearest_names
from remote_runner.inventory.placement import Entry, Spread
from remote_runner.inventory.sources.source import Listing, SlurmSource, Source, as_node
from remote_runner.inventory.ssh_target import SshTarget, check_host_name
from remote_runner.inventory.systems import System
from remote_runner.inventory.yaml_tree import Node, Scalar, parse_yaml
from remote_runner.secrets import SHORTEST, Secrets

FILE_NAME = "inventory.yaml"
LOCALHOST = "localhost"
_GLOB = re.compile(r"[*?\[]")
_SETTINGS = frozenset(name.partition(".")[0] for name in keys_of(Place.HOST))


class Direction(Enum):
    """Which way a forward carries connections."""

    TO_HOST = "to_host"
    FROM_HOST = "from_host"


@dataclass(frozen=True)
class Forward:
    """An extra forward: `endpoint` is what is dialled at its end, `port` (0: any) where the other side listens."""

    direction: Direction
    endpoint: Endpoint
    port: int
    name: str | None = None

    @property
    def variable(self) -> str | None:
        """The variable by which the application learns where it is, `None` for one without a name."""
        if self.name is None:
            return None
        return "REMOTE_RUNNER_FORWARD_" + re.sub(r"[^A-Z0-9]", "_", self.name.upper())


@dataclass(frozen=True)
class Timeouts:
    """How long each step may take, in seconds; `None` has no end."""

    connect_s: float
    build_s: float
    push_s: float
    run_s: float | None
    fetch_s: float


@dataclass(frozen=True)
class AppSettings:
    """The application: how it is built (`command`: words with placeholders) and what of the result is started.

    builder: `None` leaves the choice to what is there; flake: `None` is that of the plan.
    """

    name: str
    builder: Builder | None
    command: tuple[str, ...] | None
    program: str | None
    flake: str | None = None
    build_on: BuildOn = BuildOn.AUTO


@dataclass(frozen=True)
class HostEntry:
    """What is known of one host, defaults included; `ssh` is `None` for this machine itself."""

    name: str
    ssh: SshTarget | None
    connect: tuple[str, ...] | None
    system: System | None
    address: str | None
    slots: int
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    forwards: tuple[Forward, ...]
    service_ports: tuple[tuple[str, int], ...]
    forward_users: ForwardUsers
    env: tuple[tuple[str, str], ...]
    pass_through: tuple[str, ...]
    secret_env: tuple[str, ...]
    directory: str | None
    cache_limit_bytes: int
    outputs_limit_bytes: int
    store: StoreChoice
    substitute: bool
    grace_s: float
    tolerate_s: float
    on_unreachable: OnUnreachable
    timeouts: Timeouts
    app: AppSettings
    source: str = FILE_NAME
    """Where it is from: the inventory, or an entry of `hosts_from`."""
    job: str = ""
    """The Slurm allocation of which it is a node."""
    by_step: bool = False
    """Whether a step of that allocation reaches it."""
    nearest: tuple[str, ...] = ()
    """For a name that the inventory does not list: the listed ones that may be meant."""

    @property
    def is_local(self) -> bool:
        return self.ssh is None

    @property
    def by_ssh(self) -> SshTarget | None:
        """What ssh is asked for, where ssh reaches it."""
        return None if self.connect is not None or self.by_step else self.ssh

    def pinned_port(self, service: str) -> int:
        """The fixed far port of a service (`sync`, `influxdb`, `redis`), 0 where any will do."""
        return dict(self.service_ports).get(service, 0)


def host_key(entry: HostEntry) -> str:
    """A short name for a host as it is reached and where it keeps things, the same in every process."""
    return hashlib.sha256(repr((entry.name, entry.ssh, entry.directory)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Inventory:
    """A plan's hosts in their order (this machine, where none are listed), and its application.

    `sources` are those of further hosts that were not read yet; `with_hosts` puts in what they say. `links`:
    whether the ways between hosts are measured behind each run.
    """

    file: Path
    hosts: tuple[HostEntry, ...]
    spread: Spread
    app: AppSettings
    any_host: HostEntry
    this_host: HostEntry
    sources: tuple[Source, ...] = ()
    source_s: float = 30.0
    allocate_s: float = 3600.0
    links: bool = False
    text: str = field(default="", repr=False)

    @property
    def allocates(self) -> bool:
        """Whether hosts are nodes of a Slurm allocation."""
        return any(isinstance(source, SlurmSource) for source in self.sources)

    @staticmethod
    def state_of(plan_dir: Path) -> tuple[int, int, int] | None:
        """A value that changes with the file: while it is the same, so is the inventory. `None` without a file."""
        try:
            found = (plan_dir / FILE_NAME).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    @classmethod
    def load(cls, plan_dir: Path, *, cache: Path | None = None) -> Self:
        """Read `inventory.yaml` of a plan; a plan without one has this machine as its only host.

        `cache` is a directory where the parsed file may be kept for the next process (importing a YAML parser
        takes 35 ms, once for each instance). Raises `InventoryError`.
        """
        file = plan_dir / FILE_NAME
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        except UnicodeDecodeError as error:
            raise InventoryError(FILE_NAME, None, "", found="bytes that are not UTF-8", expected="text") from error
        except OSError as error:
            raise InventoryError(
                str(file), None, "", found=str(error.strerror), expected="a readable file", next_step="make it one"
            ) from error
        return cls.parse(text, file, cache=cache)

    def with_hosts(self, listings: Sequence[Listing], *, cache: Path | None = None) -> Self:
        """The same with its sources' hosts. Raises `InventoryError` for an invalid host, and where there is none."""
        return self.parse(self.text, self.file, cache=cache, listings=listings)

    @classmethod
    def parse(
        cls, text: str, file: Path, *, cache: Path | None = None, listings: Sequence[Listing] | None = None
    ) -> Self:
        """The inventory that `text` says; `file` is where it stands. Raises `InventoryError`.

        Without `listings` its sources are left to be read.
        """
        at = At(FILE_NAME, "")
        top = read_keys(parse_yaml(text, FILE_NAME, cache=cache) if text else None, Place.TOP, at)
        defaults, app = top.get("defaults", {}), top.get("app", {})
        reader = _Reader(file.parent, defaults, app)
        any_host = reader.entry("any", {}, None)
        this_host = reader.entry(LOCALHOST, {}, None)
        listed = _Listed()
        for name, (node, host_at) in top.get("hosts", {}).items():
            listed.add(name, node, host_at)
        for listing in listings or ():
            listed.add_all(listing)
        hosts = [reader.entry(name, listed.given[name], stands) for name, stands in listed.stands.items()]
        hosts = [
            replace(
                host,
                source=listed.sources[host.name],
                job=listed.jobs.get(host.name, ""),
                by_step=host.name in listed.by_step and not host.connect,
            )
            for host in hosts
        ]
        come_later = any(listing.later for listing in listings or ())
        if listings is not None and not hosts and not come_later:
            said = ", ".join(f"{listing.source}: none" for listing in listings)
            at.child("hosts_from").fail(0, "hosts, here or in `hosts`", found=f"no host ({said})")
        this_host = next((host for host in hosts if host.name == LOCALHOST), this_host)
        spread = top.get("spread", keys_of(Place.TOP)["spread"].default)
        return cls(
            file,
            tuple(hosts) or (() if come_later else (this_host,)),
            spread,
            any_host.app,
            any_host,
            this_host,
            sources=top.get("hosts_from", ()) if listings is None else (),
            source_s=_default_of("timeouts.source_s", defaults),
            allocate_s=_default_of("timeouts.allocate_s", defaults),
            links=top.get("ground_truth.links", False),
            text=text,
        )

    def host(self, name: str) -> HostEntry:
        """The host of that name; one that is not listed is reached as the user's ssh resolves it.

        Raises `RemoteRunnerError` for a name that no host can have.
        """
        for entry in self.hosts:
            if entry.name == name:
                return entry
        if name == LOCALHOST:
            return self.this_host
        try:
            target = SshTarget.from_name(name)
        except HostNameError as error:
            raise _unknown_host(name, error.reason, self.nearest(name)) from error
        assert self.any_host.ssh is not None
        ssh = replace(self.any_host.ssh, name=name, host=target.host, user=target.user or self.any_host.ssh.user)
        return replace(self.any_host, name=name, ssh=ssh, nearest=self.nearest(name))

    def select(self, patterns: Iterable[str]) -> tuple[HostEntry, ...]:
        """The hosts that names, globs and `@label`s mean, each once, in the order of the patterns.

        Raises `RemoteRunnerError` for a glob or a label that matches nothing, and for a name that no host can have.
        """
        chosen: dict[str, HostEntry] = {}
        for pattern in patterns:
            for entry in self._matching(pattern):
                chosen.setdefault(entry.name, entry)
        return tuple(chosen.values())

    def _matching(self, pattern: str) -> Sequence[HostEntry]:
        import fnmatch

        if pattern.startswith("@"):
            labelled = [entry for entry in self.hosts if pattern[1:] in entry.labels]
            if not labelled:
                labels = [f"@{label}" for entry in self.hosts for label in entry.labels]
                raise _unknown_host(pattern, "no host has this label", nearest_names(pattern, labels))
            return labelled
        if _GLOB.search(pattern):
            matching = [entry for entry in self.hosts if fnmatch.fnmatchcase(entry.name, pattern)]
            if not matching:
                raise _unknown_host(pattern, "no host of the inventory matches", self.nearest(pattern))
            return matching
        return [self.host(pattern)]

    def nearest(self, name: str) -> tuple[str, ...]:
        """The inventory's names that look most like `name`, at most two."""
        return nearest_names(name, [entry.name for entry in self.hosts])

    def secrets(self, environ: Mapping[str, str]) -> Secrets:
        """The values of all hosts' `secret_env`, as set in this file and in `environ`.

        Raises `InventoryError` for a value that is too short to be told from other text.
        """
        values = set[str]()
        for entry in (*self.hosts, self.any_host, self.this_host):
            for name in entry.secret_env:
                for value in (dict(entry.env).get(name, ""), environ.get(name, "")):
                    if 0 < len(value.strip()) < SHORTEST:
                        found = f"a value of {len(value)} characters for {name}"
                        expected = f"at least {SHORTEST}, to be told from other text"
                        raise InventoryError(FILE_NAME, None, "secret_env", found=found, expected=expected)
                    values.add(value)
        return Secrets.of(values)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The hosts as the list that placement works on."""
        return tuple(Entry(h.name, h.system, h.slots, h.address, h.labels, h.groups) for h in self.hosts)

    def complete(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Entries of the `remote-runners` param with what they leave out taken from the inventory."""
        return tuple(self._complete(entry) for entry in entries)

    def _complete(self, entry: Entry) -> Entry:
        known = self.host(entry.name)
        # `groups` are not taken over: the param is a list of its own, and its author may have other groups in mind.
        return replace(
            entry,
            system=entry.system or known.system,
            slots=entry.slots or known.slots,
            address=entry.address or known.address,
            labels=entry.labels or known.labels,
        )


def _unknown_host(pattern: str, reason: str, nearest: Sequence[str]) -> RemoteRunnerError:
    """The error for a pattern that no host of the inventory matches; `nearest` are hosts that may be meant."""
    return RemoteRunnerError(
        f"{pattern!r}: {reason}{did_you_mean(nearest)}", next_step="`fab hosts` lists the inventory's hosts and labels"
    )


def _check_inventory_name(name: str, node: Node, at: At) -> None:
    try:
        check_host_name(name)
    except HostNameError as error:
        at.fail(node.line, f"a host's name ({error.reason})", found=repr(name))
    if name in _SETTINGS and not (isinstance(node, Scalar) and node.is_null):
        expected = "a host's name; a setting of the host above stands further to the right"
        at.fail(node.line, expected, found=f"the setting {name!r}")
    user, is_login, host = name.rpartition("@")
    if is_login and host and user and not _GLOB.search(host):
        at.fail(
            node.line,
            f"the host's name alone, with the user below it: `{host}: {{ssh: {{user: {user}}}}}`",
            found=repr(name),
        )
    host, colon, port = name.rpartition(":")
    if colon and host and ":" not in host and port.isdecimal():
        expected = f"the host's name alone, with the port below it: `{host}: {{ssh: {{port: {port}}}}}`"
        at.fail(node.line, expected, found=repr(name))
    if "@" in name or _GLOB.search(name):
        at.fail(node.line, "a host's name without @, *, ? and [", found=repr(name))


def _default_of(name: str, defaults: Mapping[str, Any]) -> Any:
    return defaults.get(name, keys_of(Place.DEFAULTS)[name].default)


class _Listed:
    """The hosts in the order in which they are named, with the keys given for each: who comes first, wins."""

    def __init__(self) -> None:
        self.given: dict[str, dict[str, Any]] = {}
        self.stands: dict[str, tuple[Node, At]] = {}
        self.sources: dict[str, str] = {}
        self.jobs: dict[str, str] = {}
        self.by_step: set[str] = set()

    def add(self, name: str, node: Node, at: At, source: str = FILE_NAME) -> None:
        _check_inventory_name(name, node, at)
        values = read_keys(node, Place.HOST, at)
        self.given[name] = values | self.given.get(name, {})
        self.stands.setdefault(name, (node, at))
        # What `hosts` adds to a host of a source does not say where that is from.
        self.sources[name] = source if self.sources.get(name, FILE_NAME) == FILE_NAME else self.sources[name]

    def add_all(self, listing: Listing) -> None:
        for name, values in listing.hosts:
            self.add(name, as_node(values), At(f"hosts_from: {listing.source}", name), listing.source)
            if listing.job and self.sources[name] == listing.source:
                self.jobs[name] = listing.job
                if listing.by_step:
                    self.by_step.add(name)


class _Reader:
    """Puts a host's values, the defaults and the table's defaults together."""

    def __init__(self, plan_dir: Path, defaults: Mapping[str, Any], app: Mapping[str, Any]) -> None:
        self._plan_dir = plan_dir
        self._defaults = defaults
        self._app = app
        self._keys = keys_of(Place.HOST)
        self._app_keys = keys_of(Place.APP)

    def entry(self, name: str, given: Mapping[str, Any], stands: tuple[Node, At] | None) -> HostEntry:
        """The host; `stands` is where the inventory lists it, for messages."""

        def value(key: str) -> Any:
            return given.get(key, self._defaults.get(key, self._keys[key].default))

        app_given = given.get("app", {})
        env = {**self._app.get("env", {}), **app_given.get("env", {})}
        env |= {**self._defaults.get("env", {}), **given.get("env", {})}
        ports = ((service, value(f"service_ports.{service}")) for service in ("sync", "influxdb", "redis"))
        return HostEntry(
            name=name,
            ssh=self._ssh(name, given, value, stands),
            connect=None if name == LOCALHOST else value("connect.command"),
            system=value("system"),
            address=value("address"),
            slots=value("slots"),
            labels=value("labels"),
            groups=value("groups"),
            forwards=tuple(_forward(item) for item in value("forwards")),
            service_ports=tuple((service, port) for service, port in ports if port),
            forward_users=value("forward_users"),
            env=tuple((key, text) for key, text in env.items() if text is not None),
            pass_through=tuple(key for key, text in env.items() if text is None),
            # Not instead of the defaults': forgetting one name would show its value.
            secret_env=(*self._defaults.get("secret_env", ()), *given.get("secret_env", ())),
            directory=value("directory"),
            cache_limit_bytes=value("cache_limit"),
            outputs_limit_bytes=value("outputs_limit"),
            store=value("store"),
            substitute=value("substitute"),
            grace_s=value("grace_s"),
            tolerate_s=value("tolerate_s"),
            on_unreachable=value("on_unreachable"),
            timeouts=Timeouts(*(value(f"timeouts.{step}_s") for step in ("connect", "build", "push", "run", "fetch"))),
            app=self._app_settings(app_given),
        )

    def _app_settings(self, given: Mapping[str, Any]) -> AppSettings:
        def value(key: str) -> Any:
            return given.get(key, self._app.get(key, self._app_keys[key].default))

        builder = value("builder")
        if "builder" not in given and ("command" in given) != ("flake" in given):
            # What a host says for itself is not overruled by a choice that is right for the others.
            builder = Builder.COMMAND if "command" in given else Builder.NIX
        return AppSettings(
            value("name"), builder, value("command"), value("program"), value("flake"), value("build_on")
        )

    def _ssh(self, name: str, given: Mapping[str, Any], value: Any, stands: tuple[Node, At] | None) -> SshTarget | None:
        if name == LOCALHOST:
            for section in ("ssh", "connect"):
                if stands and any(key.startswith(f"{section}.") for key in given):
                    node, at = stands
                    expected = f"no {section} settings: localhost is always this machine"
                    at.child(section).fail(node.line, expected, found="some")
            return None
        identity_file = value("ssh.identity_file")
        if identity_file and not identity_file.startswith(("/", "~", "%")):
            identity_file = str(self._plan_dir / identity_file)
        options = {**self._defaults.get("ssh.options", {}), **given.get("ssh.options", {})}
        return SshTarget(
            name=name,
            host=value("ssh.host") or name,
            user=value("ssh.user"),
            port=value("ssh.port"),
            identity_file=identity_file,
            options=tuple(options.items()),
        )


def _forward(item: Mapping[str, Any]) -> Forward:
    if "to_host" in item:
        return Forward(Direction.TO_HOST, item["to_host"], item.get("port", item["to_host"].port), item.get("name"))
    return Forward(Direction.FROM_HOST, item["from_host"], item.get("port", 0), item.get("name"))
