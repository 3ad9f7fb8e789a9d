"""`fab hosts`: the inventory, with what is known about each host, or, with --probe, what it reports.

`fab hosts.login` opens one's connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Any

import invoke

from remote_runner.errors import RemoteRunnerError, SshFailedError
from remote_runner.sizes import count, size
from remote_runner.typed import as_typed
from tasks.command_line.task import Failed, task
from tasks.parallel import ask_each, raise_failed
from tasks.plan import Plan
from tasks.say import age, keep_secret, say, show, show_json, show_table

if TYPE_CHECKING:
    from remote_runner.connection.verbs.facts import HostFacts
    from remote_runner.inventory.inventory import HostEntry


@task(
    default=True,
    name="list",
    shows=True,
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
    for entry in entries:
        if entry.nearest:
            say(f"{entry.name} is not in inventory.yaml; did you mean {' or '.join(entry.nearest)}?")
    known = [_known(plan, entry) for entry in entries]
    if json:
        show_json(known)
        return
    columns: tuple[str, ...] = ("host", "system", "slots", "reached as", "login", "last contact", "address", "labels")
    rows: list[tuple[str, ...]] = [_row(one) for one in known]
    if plan.listings:
        columns = (*columns, "from")
        rows = [(*row, entry.source) for row, entry in zip(rows, entries, strict=True)]
    least = ("slots", "labels", "address", "last contact")
    show_table(rows, header=columns, least=least, cut="reached as")
    for listing in plan.listings:
        if listing.how:
            say(f"hosts_from: {listing.source}: {listing.how}")
        for left_out in listing.left_out:
            say(f"hosts_from: {listing.source}: left out {left_out}")


@task(help={"json": "print JSON"})
def sources(c: invoke.Context, json: bool = False) -> None:
    """Show what each entry of hosts_from says now, in the inventory's own keys."""
    plan = Plan.here()
    listings = plan.listings
    keep_secret(plan.inventory.secrets(plan.environ))
    if json:
        show_json([listing.to_json() for listing in listings])
        return
    for listing in listings:
        told = [
            count(len(listing.hosts), "host"),
            *filter(None, [listing.how]),
            *(f"left out {words}" for words in listing.left_out),
        ]
        say(f"{listing.source}: {'; '.join(told)}")
        for name, keys in listing.hosts:
            show(f"{name}: {dumps(keys)}" if keys else name)
    if not listings:
        say("inventory.yaml has no hosts_from")


@task(help={"host": "a host's name, a glob or @label; as often as needed"})
def login(c: invoke.Context, host: list[str] | None = None) -> None:
    """Open a host's connection in this terminal, where ssh may ask for a passphrase, a PIN or a code."""
    from remote_runner.connection.transports.login import open_login

    plan = Plan.here()
    for entry in plan.select(host):
        if entry.by_ssh is None:
            by = "a step of Slurm's" if entry.by_step else "a command (connect.command)"
            what = "this machine" if entry.ssh is None else f"reached by {by}"
            raise Failed(f"hosts.login: {entry.name} is {what}; there is nothing to log in to")
        try:
            opened = open_login(entry.by_ssh, plan.controller, plan.environ)
        except SshFailedError as error:
            plan.run(_explain(plan, entry))
            raise error from None
        say(f"{entry.name}: {'connected' if opened else 'was connected already'}; later steps log in through this")


async def _explain(plan: Plan, entry: HostEntry) -> None:
    """Try to connect without a terminal: ssh has told that one why it failed, and not us."""
    async with plan.shared() as shared:
        await shared.agent(entry, plan.environ)


def _probe(plan: Plan, entries: Sequence[HostEntry], *, json: bool) -> None:
    found = ask_each(plan, entries, lambda agent, _: agent.host_facts())
    if json:
        show_json([_probed_json(entry, one) for entry, one in zip(entries, found, strict=True)])
    else:
        rows = [_probed_row(entry, one) for entry, one in zip(entries, found, strict=True)]
        show_table(rows, header=_PROBED_COLUMNS, least=_LEAST_PROBED)
        for entry, one in zip(entries, found, strict=True):
            for remark in () if isinstance(one, RemoteRunnerError) else one.remarks(entry.system):
                show(as_typed(f"{entry.name}: {remark}"))
    raise_failed(entries, found)


_PROBED_COLUMNS = (
    *("host", "system", "kernel", "shell", "nix", "closures", "userns", "free", "clock"),
    *("cores", "memory", "load", "slots", "python"),
)
# The first to go where it is narrow.
_LEAST_PROBED = ("python", "shell", "slots", "userns", "kernel", "closures", "nix", "memory", "load", "cores")
_CLOSURES = {"nix": "copied", "build": "built there", "user": "user store", None: "-"}


def _probed_row(entry: HostEntry, facts: HostFacts | RemoteRunnerError) -> tuple[str, ...]:
    if isinstance(facts, RemoteRunnerError):
        # Why was told as soon as it was known.
        return (entry.name, "failed", *["-"] * (len(_PROBED_COLUMNS) - 4), str(entry.slots), "-")
    clock, nix = facts.clock, facts.nix
    access = "" if nix is None or nix.version is None else f" ({nix.access.value})"
    return (
        entry.name,
        str(facts.system),
        facts.kernel or "-",
        (facts.shell or "-").rpartition("/")[2],
        "-" if nix is None else nix.version or nix.access.value,
        f"{_CLOSURES[facts.closure_way()]}{access}",
        {True: "yes", False: "no", None: "-"}[facts.user_namespaces],
        "-" if facts.free_bytes is None else size(facts.free_bytes),
        "-" if clock is None else f"{clock.offset_s:+.3f} ±{clock.uncertainty_s:.3f} s",
        "-" if facts.cores is None else str(facts.cores),
        "-" if facts.memory_bytes is None else size(facts.memory_bytes),
        "-" if facts.load is None else f"{facts.load:.2f}",
        str(entry.slots),
        facts.python or "-",
    )


def _probed_json(entry: HostEntry, facts: HostFacts | RemoteRunnerError) -> dict[str, object]:
    if isinstance(facts, RemoteRunnerError):
        return {"host": entry.name, "slots": entry.slots, "error": str(facts)}
    nix, clock = facts.nix, facts.clock
    return {
        "host": entry.name,
        "system": str(facts.system),
        "system_name": facts.system_name,
        "kernel": facts.kernel,
        "processor": facts.processor,
        "governor": facts.governor,
        "virtualization": facts.virtualization,
        "user": facts.user,
        "shell": facts.shell,
        "nix": None if nix is None else {**asdict(nix), "access": nix.access.value},
        "closures": facts.closure_way(),
        "user_namespaces": facts.user_namespaces,
        "user_namespaces_problem": facts.user_namespaces_problem,
        "directory": facts.base,
        "free_bytes": facts.free_bytes,
        "clock": None if clock is None else {key: round(value, 4) for key, value in asdict(clock).items()},
        "cores": facts.cores,
        "cores_online": facts.cores_online,
        "memory_bytes": facts.memory_bytes,
        "available_bytes": facts.available_bytes,
        "swap_bytes": facts.swap_bytes,
        "load": facts.load,
        "slots": entry.slots,
        "python": facts.python,
        "remarks": facts.remarks(entry.system),
        "error": None,
    }


def _known(plan: Plan, entry: HostEntry) -> dict[str, object]:
    from remote_runner.inventory.known import known_of

    known = known_of(plan.controller, entry)
    return {
        "host": entry.name,
        "system": None if known.system is None else str(known.system),
        "slots": entry.slots,
        "reached_as": _reached_as(entry),
        "connected": _has_login(plan, entry),
        "last_contact_s": None if known.last_contact_s is None else round(known.last_contact_s),
        "address": entry.address,
        "labels": list(entry.labels),
        "groups": list(entry.groups),
        "app": entry.app.name,
        "from": entry.source,
    }


def _has_login(plan: Plan, entry: HostEntry) -> bool | None:
    """Whether `hosts.login` has opened its connection; `None` where there is nothing to log in to."""
    from remote_runner.connection.transports.login import is_listening, login_socket

    if entry.by_ssh is None:
        return None
    return is_listening(login_socket(entry.by_ssh, plan.controller, plan.environ))


def _row(known: dict[str, Any]) -> tuple[str, ...]:
    connected, last_s = known["connected"], known["last_contact_s"]
    return (
        known["host"],
        known["system"] or "not asked yet",
        str(known["slots"]),
        known["reached_as"] or "this machine",
        "-" if connected is None else "open" if connected else "no",
        "-" if known["reached_as"] is None else "never" if last_s is None else f"{age(last_s)} ago",
        known["address"] or "-",
        ",".join(known["labels"]) or "-",
    )


def _reached_as(entry: HostEntry) -> str | None:
    if entry.connect is not None:
        return entry.connect[0]
    if entry.by_step:
        return f"srun in job {entry.job}"
    if (ssh := entry.ssh) is None:
        return None
    user = f"{ssh.user}@" if ssh.user else ""
    port = f":{ssh.port}" if ssh.port else ""
    return f"ssh {user}{ssh.host}{port}"
