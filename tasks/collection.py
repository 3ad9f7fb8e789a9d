"""The tasks of remote-runner as a Fabric collection; importing it makes a running `fab` use this project's executor."""

from __future__ import annotations

import fabric.main
from invoke import Collection

from tasks import (
    build,
    choose,
    clean,
    demo,
    doctor,
    fetch,
    hosts,
    init,
    instance,
    local,
    plan_import,
    push,
    run,
)
from tasks.command_line import completion, executor
from tasks.runs import listing, logs, remove, report, rerun

ns = Collection(
    build.build,
    choose.choose,
    clean.clean,
    completion.completion,
    demo.demo,
    doctor.doctor,
    fetch.fetch,
    init.init,
    instance.instance,
    push.push,
    report.report,
    rerun.rerun,
    run.run,
    Collection("runs", listing.runs, listing.show, logs.logs, remove.remove),
    Collection("hosts", hosts.hosts, hosts.login, hosts.sources),
    Collection("plan", plan_import.import_),
    Collection("local", local.single, local.composition, local.sync_service),
)

executor.install(fabric.main.program)
