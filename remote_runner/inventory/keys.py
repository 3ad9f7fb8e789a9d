"""The table of `inventory.yaml`'s keys: each with its kind, default, documentation and places.

Reading, error messages, the JSON schema and the reference in the documentation all come from it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from remote_runner.inventory.kinds import (
    ABSOLUTE,
    ANY_PORT,
    ARGUMENTS,
    BOOLEAN,
    BUILD_ON,
    BUILDER,
    COMMAND,
    CONNECT,
    ENDPOINT,
    ENV,
    FILE_NAME,
    FLAKE,
    FORWARD_USERS,
    HOST_NAME,
    HOSTS,
    INSIDE,
    NODES,
    ON_UNREACHABLE,
    OPTIONS,
    PATTERNS,
    PORT,
    PROGRAM,
    SECONDS,
    SECONDS_OR_NONE,
    SECRETS,
    SIZE,
    SLOTS,
    SLURM_CONNECT,
    SPREAD,
    STORE,
    SYSTEM,
    TEXT,
    TIME,
    USER_NAME,
    WORD,
    WORDS,
    At,
    BuildOn,
    ForwardUsers,
    Kind,
    OnUnreachable,
    StoreChoice,
    list_kind,
    nearest_names,
)
from remote_runner.inventory.placement import Spread
from remote_runner.inventory.sources.source import (
    AnsibleSource,
    CommandSource,
    SlurmConnect,
    SlurmSource,
    Source,
    SshConfigSource,
)
from remote_runner.inventory.yaml_tree import Mapping, Node, Scalar
from remote_runner.outputs import DEFAULT_LIMIT_BYTES


class Place(Enum):
    """Where a key may stand."""

    TOP = "the top level"
    DEFAULTS = "defaults"
    HOST = "hosts.NAME"
    APP = "app"
    FORWARD = "an entry of forwards"
    SOURCE = "an entry of hosts_from"
    SLURM = "slurm, in an entry of hosts_from"


@dataclass(frozen=True)
class Key:
    """One row of the table; a dotted name stands in nested mappings."""

    name: str
    kind: Kind
    default: Any
    doc: str
    places: frozenset[Place]
    shown_default: str = ""


def _nested(place: Place, expected: str) -> Kind:
    return Kind(expected, lambda node, at: read_keys(node, place, at), {"$ref": f"#/$defs/{place.name.lower()}"})


def _read_forward(node: Node, at: At) -> dict[str, Any]:
    values = read_keys(node, Place.FORWARD, at)
    if ("to_host" in values) == ("from_host" in values):
        at.fail(node, "one of to_host and from_host", found="both" if "to_host" in values else "neither")
    return values


def _read_source(node: Node, at: At) -> Source:
    values = read_keys(node, Place.SOURCE, at)
    if len(values) != 1:
        kinds = ", ".join(keys_of(Place.SOURCE))
        at.fail(node, f"one of {kinds}", found=" and ".join(values) or "none of them")
    ((kind, value),) = values.items()
    if kind == "slurm":
        return SlurmSource(**{key.name: value.get(key.name, key.default) for key in keys_of(Place.SLURM).values()})
    kinds_of_one: dict[str, Any] = {"ssh_config": SshConfigSource, "ansible": AnsibleSource, "command": CommandSource}
    source: Source = kinds_of_one[kind](value)
    return source


_BOTH = frozenset({Place.DEFAULTS, Place.HOST})
_HOST = frozenset({Place.HOST})
_APP = frozenset({Place.APP})
_TOP = frozenset({Place.TOP})
_FORWARD = frozenset({Place.FORWARD})

_DEFAULTS = frozenset({Place.DEFAULTS})
_SOURCE = frozenset({Place.SOURCE})
_SLURM = frozenset({Place.SLURM})

_SOURCES = list_kind("a list of sources", Kind("a source of hosts", _read_source, {"$ref": "#/$defs/source"}))
_FORWARDS = list_kind("a list of forwards", Kind("a forward", _read_forward, {"$ref": "#/$defs/forward"}))

KEYS: tuple[Key, ...] = (
    Key(
        "defaults",
        _nested(Place.DEFAULTS, "a mapping of settings"),
        {},
        "Settings of every host; what a host says itself wins, mappings are merged.",
        _TOP,
    ),
    Key(
        "hosts", HOSTS, {}, "The hosts, by name. Without any there is `localhost`, which is always this machine.", _TOP
    ),
    Key(
        "hosts_from",
        _SOURCES,
        (),
        "Further hosts, behind those of `hosts`; where both name one, what `hosts` says of it wins.",
        _TOP,
    ),
    Key(
        "spread",
        SPREAD,
        Spread.FILL,
        "`fill`: a host's slots before the next host's; `round`: one slot of each host, then the next of each.",
        _TOP,
    ),
    Key(
        "ground_truth.links",
        BOOLEAN,
        False,
        "Measure the ways between the hosts behind each run (docs/ground-truth.md); 1 s for each of them.",
        _TOP,
    ),
    Key(
        "app",
        _nested(Place.APP, "a mapping of settings"),
        {},
        "The application: how it is built and what runs.",
        _TOP | _HOST,
    ),
    Key("system", SYSTEM, None, "Processor and operating system.", _BOTH, "asked of the host"),
    Key(
        "address", HOST_NAME, None, "What other instances dial to reach this host.", _HOST, "the one it was reached by"
    ),
    Key("ssh.host", HOST_NAME, None, "What `ssh` is given to reach it.", _HOST, "the host's name"),
    Key("ssh.user", USER_NAME, None, "The user there.", _BOTH, "as in the ssh configuration"),
    Key("ssh.port", PORT, None, "The port of its sshd.", _BOTH, "as in the ssh configuration"),
    Key(
        "ssh.identity_file",
        TEXT,
        None,
        "A private key; a relative path starts at the plan.",
        _BOTH,
        "as in the ssh configuration",
    ),
    Key("ssh.options", OPTIONS, {}, "Further options of ssh_config(5).", _BOTH),
    Key(
        "connect.command",
        CONNECT,
        None,
        "Reaches the host in the place of ssh, for example with `docker exec -i`.",
        _BOTH,
        "ssh",
    ),
    Key("slots", SLOTS, 1, "How many instances it takes before the next host's turn.", _BOTH),
    Key("labels", WORDS, (), "Names for several hosts; `@lab` selects all labelled `lab`.", _BOTH),
    Key("groups", WORDS, (), "Only instances of these groups land here.", _HOST, "any group"),
    Key("forwards", _FORWARDS, (), "Further ports carried between this machine and the host.", _BOTH),
    Key(
        "service_ports.sync",
        PORT,
        None,
        "A fixed port there for the sync service, for SDKs that cannot be told.",
        _BOTH,
        "any free one",
    ),
    Key("service_ports.influxdb", PORT, None, "The same for InfluxDB.", _BOTH, "any free one"),
    Key("service_ports.redis", PORT, None, "The same for Redis.", _BOTH, "any free one"),
    Key(
        "forward_users",
        FORWARD_USERS,
        ForwardUsers.OWN,
        "Whose processes there may use our forwards: those of the login's own user (`own`, on Linux), or of `any`.",
        _BOTH,
    ),
    Key("env", ENV, {}, "Further variables of the application; one without a value is passed on from here.", _BOTH),
    Key(
        "secret_env",
        SECRETS,
        (),
        "Variables whose values remote-runner prints nowhere (`***`); the application's own output is its own affair.",
        _BOTH,
    ),
    Key(
        "directory",
        ABSOLUTE,
        None,
        "Where the runs and the cache lie there.",
        _BOTH,
        "`~/.cache/remote-runner`, else below `/var/tmp` or `/tmp`",
    ),
    Key("cache_limit", SIZE, 5 << 30, "How much the artifact cache there may hold.", _BOTH, "5 GiB"),
    Key(
        "store",
        STORE,
        StoreChoice.AUTO,
        "Where what Nix built lies there: `nix` is the host's store, `user` one in `directory` that needs no Nix.",
        _BOTH,
        "`auto`: `nix` where the user may add to it, else `user`",
    ),
    Key(
        "substitute",
        BOOLEAN,
        True,
        "Whether the host may fetch what is missing from its own substituters; out of their reach, it waits.",
        _BOTH,
    ),
    Key("outputs_limit", SIZE, DEFAULT_LIMIT_BYTES, "How much of an instance's outputs is fetched.", _BOTH, "20 GiB"),
    Key("grace_s", SECONDS, 10.0, "How long after TERM what still runs gets KILL.", _BOTH),
    Key("tolerate_s", SECONDS, 60.0, "How long the host goes on without hearing from here.", _BOTH),
    Key(
        "on_unreachable",
        ON_UNREACHABLE,
        OnUnreachable.FAIL,
        "`fail`: an instance whose host cannot be reached fails; `next`: it goes to the next host of the list.",
        _BOTH,
    ),
    Key("timeouts.connect_s", SECONDS, 30.0, "Time to reach the host, retries included.", _BOTH),
    Key("timeouts.build_s", SECONDS, 600.0, "Time for a build.", _BOTH),
    Key("timeouts.push_s", SECONDS, 600.0, "Time to push an artifact.", _BOTH),
    Key("timeouts.run_s", SECONDS_OR_NONE, None, "Time for the application.", _BOTH, "none"),
    Key("timeouts.fetch_s", SECONDS, 300.0, "Time to fetch the outputs.", _BOTH),
    Key("timeouts.source_s", SECONDS, 30.0, "Time for each entry of `hosts_from` to say its hosts.", _DEFAULTS),
    Key("timeouts.allocate_s", SECONDS, 3600.0, "Time for Slurm to allocate nodes, its queue included.", _DEFAULTS),
    Key(
        "ssh_config",
        PATTERNS,
        None,
        "The names in the user's ssh configuration that match; what `Include` brings counts as well.",
        _SOURCE,
    ),
    Key(
        "ansible",
        TEXT,
        None,
        "An inventory of Ansible's; the path starts at the plan. Groups become labels.",
        _SOURCE,
    ),
    Key(
        "command",
        PROGRAM,
        None,
        "A program that prints JSON: names, or names with keys of `hosts.NAME`. It runs in the plan's directory.",
        _SOURCE,
    ),
    Key(
        "slurm",
        _nested(Place.SLURM, "a mapping of settings"),
        None,
        "The nodes of a Slurm allocation: of the one that the run is in, else of one made for it.",
        _SOURCE,
    ),
    Key("nodes", NODES, 1, "How many nodes to allocate.", _SLURM),
    Key("partition", WORD, None, "Where.", _SLURM, "Slurm's default partition"),
    Key("time", TIME, None, "For how long.", _SLURM, "the partition's default"),
    Key("options", ARGUMENTS, (), "Further options of salloc.", _SLURM),
    Key("slots", SLOTS, None, "How many instances a node takes.", _SLURM, "the processors allocated there"),
    Key(
        "connect",
        SLURM_CONNECT,
        SlurmConnect.SRUN,
        "`srun`: a step of the allocation; `ssh`: where the site lets users log in to nodes allocated to them.",
        _SLURM,
    ),
    Key(
        "name",
        FILE_NAME,
        "app",
        "The application's name: that of the flake's package `packages.SYSTEM.NAME`, and of `{out}`.",
        _APP,
    ),
    Key(
        "builder",
        BUILDER,
        None,
        "How it is built; a host that says `command` or `flake` itself says this as well.",
        _APP,
        "`command` where that is set and `flake` is not; else `nix`",
    ),
    Key(
        "flake", FLAKE, None, "What Nix builds: any flake reference; a path starts at the plan.", _APP, "`.`, the plan"
    ),
    Key(
        "build_on",
        BUILD_ON,
        BuildOn.AUTO,
        "Where Nix builds it: on this machine (`local`) or on the host (`target`).",
        _APP,
        "`auto`: here if this machine or its remote builders can, else on the host",
    ),
    Key(
        "command",
        COMMAND,
        None,
        "Makes `{out}`, a file or a folder; runs in the plan's directory, without a shell.",
        _APP,
    ),
    Key(
        "program",
        INSIDE,
        None,
        "What to start, as a path inside the result.",
        _APP,
        "the result itself, when it is a file; with Nix `bin/` and the package's `meta.mainProgram` or name",
    ),
    Key("env", ENV, {}, "Variables of the application on every host; a host's own `env` wins.", _APP),
    Key("name", WORD, None, "The application learns the port as `REMOTE_RUNNER_FORWARD_NAME`.", _FORWARD, "none"),
    Key("to_host", ENDPOINT, None, "Dialled from this machine; the host reaches it at its own `localhost`.", _FORWARD),
    Key(
        "from_host", ENDPOINT, None, "Dialled from the host; this machine reaches it at its own `localhost`.", _FORWARD
    ),
    Key(
        "port",
        ANY_PORT,
        None,
        "The port on that `localhost`.",
        _FORWARD,
        "the same for `to_host`, any free one for `from_host`",
    ),
)


@functools.cache
def keys_of(place: Place) -> dict[str, Key]:
    """The keys that may stand in a place, by (dotted) name."""
    return {key.name: key for key in KEYS if place in key.places}


def read_keys(node: Node | None, place: Place, at: At) -> dict[str, Any]:
    """The values given in a mapping, by dotted name; raises `InventoryError` for what the table does not know."""
    values: dict[str, Any] = {}
    keys = keys_of(place)
    _walk(node, keys, place, "", at, values)
    return values


def _walk(node: Node | None, keys: dict[str, Key], place: Place, prefix: str, at: At, values: dict[str, Any]) -> None:
    if node is None or (isinstance(node, Scalar) and node.is_null):
        return
    if not isinstance(node, Mapping):
        meant = _meant(node, place, prefix)
        known = f": `{at.path.rpartition('.')[2]}: {meant}`" if meant else f" ({', '.join(_next_names(keys, prefix))})"
        at.fail(node, f"a mapping{known}")
    for name, child in node.items.items():
        dotted = prefix + name
        if dotted in keys:
            values[dotted] = keys[dotted].kind.read(child, at.child(name))
        elif any(key.startswith(f"{dotted}.") for key in keys):
            _walk(child, keys, place, f"{dotted}.", at.child(name), values)
        else:
            _refuse(name, node.lines[name], keys, place, prefix, at)


def _meant(node: Node, place: Place, prefix: str) -> str:
    """The mapping that was probably meant by a value in its place; "" where nobody can tell."""
    if not isinstance(node, Scalar) or not re.fullmatch(r"[\w.@-]+", node.text):
        return ""
    user, _, host = node.text.rpartition("@")
    target = f"{{host: {host}{f', user: {user}' if user else ''}}}"
    meant = {(Place.HOST, ""): f"{{ssh: {target}}}", (Place.APP, ""): f"{{name: {node.text}}}"}
    return target if prefix == "ssh." else meant.get((place, prefix), "")


def _next_names(keys: dict[str, Key], prefix: str) -> list[str]:
    return list(dict.fromkeys(key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)))


def _refuse(name: str, line: int, keys: dict[str, Key], place: Place, prefix: str, at: At) -> NoReturn:
    here = _next_names(keys, prefix)
    # `user` written beside `ssh`, `connect_s` beside `timeouts`: the name is right, its place is not.
    elsewhere = tuple(key for key in keys if key.split(".")[-1] == name)
    full = prefix + name
    others = [p for key in KEYS if key.name == full or key.name.startswith(f"{full}.") for p in key.places - {place}]
    if others and not elsewhere:
        places = " or ".join(p.value for p in Place if p in others)
        at.child(name).fail(line, f"this key in {places}", found="the key here")
    nearest = elsewhere or nearest_names(name, here)
    at.child(name).fail(line, f"one of {', '.join(here)}", found="an unknown key", nearest=nearest)
