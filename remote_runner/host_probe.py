"""Asking a host what it is: everything that `fab hosts --probe` shows, in one brief session."""

from __future__ import annotations

import time
from dataclasses import dataclass

from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import RemoteRunnerError
from remote_runner.far_shell import load_script
from remote_runner.host import Host
from remote_runner.host_facts import HostFacts, facts_of
from remote_runner.inventory.inventory import HostEntry
from remote_runner.probe import remember_system


@dataclass(frozen=True)
class Probed:
    """What a host said; `error` is why it did not say everything."""

    facts: HostFacts
    error: RemoteRunnerError | None


def probe_host(host: Host, entry: HostEntry, *, controller: Controller, deadline: Deadline) -> Probed:
    """Ask the host; the system that it says is remembered. A host that says nothing is nothing but an error."""
    answers: list[tuple[str, str]] = []
    asked: tuple[float, float] | None = None
    script = load_script("base.sh", "artifact/nix/store.sh", "probe.sh")
    values = {"directory": entry.directory or ""}
    error = None
    try:
        with BriefSession(host, script, values, deadline, f"asking {host.name} what it is") as session:
            session.answer()  # it is ready to look at its clock
            asked_s = time.time()
            session.send((b"\n",))
            while not answers or answers[-1][0] != "end":
                answers.append(session.answer())
                asked = asked or (asked_s, time.time())
            session.finish()
    except RemoteRunnerError as caught:
        error = caught
    facts = facts_of(answers, asked)
    if facts.system is not None and not entry.is_local:
        remember_system(controller, entry, facts.system)
    return Probed(facts, error)
