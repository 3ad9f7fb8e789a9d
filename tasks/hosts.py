"""`fab hosts`: the inventory, with what is known of each host, or what each says when it is asked.

`fab hosts.login` opens one's connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import invoke

from remote_runner.deadline import Deadline
from remote_runner.errors import RemoteRunnerError
from remote_runner.host_facts import HostFacts, closure_way, remarks
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.known import known_of
from remote_runner.sizes import size
from tasks.parallel import attempt_each, raise_failed
from tasks.plan import Plan
from tasks.say import age, say, show, show_json, table
from tasks.task import Failed, task


@task(
    default=True,
    name="list",
    help={
        "host": "only these: names, globs, @labels (fab -H does the same)",
        "probe": "ask each what it is and can, all at once; a host that does not answer is a row with the reason",
        "json": "print JSON",
    },
)
def hosts(c: invoke.Context, host: list[str] | None = None, probe: bool = False, json: bool = False) -> None:
    """Show the inventory's hosts and what is known of each, without asking any; --probe asks."""
    plan = Plan.here()
    entries = plan.select(host) if host else plan.inventory.hosts
    if probe:
        _probe(plan, entries, json=json)
        return
    known = [_known(plan, entry) for entry in entries]
    if json:
        show_json(known)
        return
    columns = ("host", "system", "slots", "reached as", "connection", "last contact", "address", "labels")
    show(table([_row(one) for one in known], header=columns))


@task(help={"host": "a host's name, a glob or @label; as often as needed"})
def login(c: invoke.Context, host: list[str] | None = None) -> None:
    """Open a host's connection in this terminal, where ssh may ask for a passphrase, a PIN or a code."""
    from remote_runner.masters import SshHost
    from remote_runner.ssh_places import LONG_PLACES

    plan = Plan.here()
    for entry in plan.select(host):
        with plan.host(entry) as door:
            if not isinstance(door, SshHost):
                raise Failed(f"hosts.login: {entry.name} is this machine; there is nothing to log in to")
            opened = door.login()
        say(f"{entry.name}: {'connected' if opened else 'was connected already'}; later steps use this connection")
        # Only the first is opened here. A host that logs in without asking is given further ones when they are needed.
        say(f"  it takes {LONG_PLACES} instances at once; more need a login without a question, by a key for instance")


def _probe(plan: Plan, entries: Sequence[HostEntry], *, json: bool) -> None:
    from remote_runner.host_probe import Probed, probe_host

    def ask(entry: HostEntry) -> Probed:
        with plan.host(entry) as door:
            deadline = Deadline.after(entry.timeouts.connect_s)
            probed = probe_host(door, entry, controller=plan.controller, deadline=deadline)
        if probed.error is not None:
            say(str(probed.error))
        return probed

    found = [
        one if isinstance(one, Probed) else Probed(HostFacts(), one)  # a door that cannot even be tried
        for one in attempt_each(entries, ask)
    ]
    if json:
        show_json([_probed_json(entry, one.facts, one.error) for entry, one in zip(entries, found, strict=True)])
    else:
        rows = [_probed_row(entry, one.facts, one.error) for entry, one in zip(entries, found, strict=True)]
        show(table(rows, header=_PROBED_COLUMNS))
    raise_failed(entries, [one.error for one in found])


_PROBED_COLUMNS = (
    *("host", "system", "kernel", "shell", "nix", "closures", "userns", "free", "clock", "sessions", "startups"),
    *("slots", "python", "remarks"),
)
_CLOSURES = {"nix": "copied", "build": "built there", "user": "user store", None: "-"}


def _probed_row(entry: HostEntry, facts: HostFacts, error: RemoteRunnerError | None) -> tuple[str, ...]:
    sshd, clock, nix = facts.sshd, facts.clock, facts.nix
    told = remarks(facts, entry.system)
    if error is not None:
        told.append(_first_sentence(entry, error))
    return (
        entry.name,
        str(facts.system or (facts.uname or "-").replace(":", " ")),
        facts.kernel or "-",
        (facts.shell or "-").rpartition("/")[2],
        "-" if nix is None else nix.version or nix.access.value,
        f"{_CLOSURES[closure_way(facts)]}{'' if nix is None or nix.version is None else f' ({nix.access.value})'}",
        {True: "yes", False: "no", None: "-"}[facts.user_namespaces],
        "-" if facts.free_bytes is None else size(facts.free_bytes),
        "-" if clock is None else f"{clock.offset_s:+.3f} ±{clock.uncertainty_s:.3f} s",
        "-" if sshd is None else str(sshd.max_sessions),
        "-" if sshd is None else sshd.max_startups,
        str(entry.slots),
        facts.python or "-",
        "; ".join(told),
    )


def _first_sentence(entry: HostEntry, error: RemoteRunnerError) -> str:
    return str(error).splitlines()[0].removeprefix(f"{entry.name}: ")


def _probed_json(entry: HostEntry, facts: HostFacts, error: RemoteRunnerError | None) -> dict[str, object]:
    nix, clock = facts.nix, facts.clock
    return {
        "host": entry.name,
        "system": None if facts.system is None else str(facts.system),
        "uname": facts.uname,
        "kernel": facts.kernel,
        "user": facts.user,
        "shell": facts.shell,
        "nix": None if nix is None else {**asdict(nix), "access": nix.access.value},
        "closures": closure_way(facts),
        "user_namespaces": facts.user_namespaces,
        "user_namespaces_problem": facts.user_namespaces_problem,
        "directory": facts.base,
        "directory_problem": facts.base_problem,
        "free_bytes": facts.free_bytes,
        "clock": None if clock is None else {key: round(value, 4) for key, value in asdict(clock).items()},
        "sshd": None if facts.sshd is None else asdict(facts.sshd),
        "slots": entry.slots,
        "python": facts.python,
        "remarks": remarks(facts, entry.system),
        "error": None if error is None else str(error),
    }


def _known(plan: Plan, entry: HostEntry) -> dict[str, object]:
    with plan.host(entry) as door:
        known = known_of(plan.controller, entry, door)
    return {
        "host": entry.name,
        "system": None if known.system is None else str(known.system),
        "slots": entry.slots,
        "reached_as": None if entry.ssh is None else _reached_as(entry.ssh),
        "connected": known.is_connected,
        "last_contact_s": None if known.last_contact_s is None else round(known.last_contact_s),
        "address": entry.address,
        "labels": list(entry.labels),
        "groups": list(entry.groups),
        "app": entry.app.name,
    }


def _row(known: dict[str, Any]) -> tuple[str, ...]:
    connected, last_s = known["connected"], known["last_contact_s"]
    return (
        known["host"],
        known["system"] or "not asked yet",
        str(known["slots"]),
        known["reached_as"] or "this machine",
        "-" if connected is None else "open" if connected else "closed",
        "-" if connected is None else "never" if last_s is None else f"{age(last_s)} ago",
        known["address"] or "-",
        ",".join(known["labels"]) or "-",
    )


def _reached_as(ssh: SshTarget) -> str:
    user = f"{ssh.user}@" if ssh.user else ""
    port = f":{ssh.port}" if ssh.port else ""
    return f"ssh {user}{ssh.host}{port}"
