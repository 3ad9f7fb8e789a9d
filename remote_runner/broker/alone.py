"""An instance in a process of its own, run by the same code as in the broker."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

from remote_runner import debug
from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller
from remote_runner.instance.instance import run_instance
from remote_runner.instance.shared import Shared
from remote_runner.instance.writer import Writer
from remote_runner.records.attending import Attending


def run_alone(environ: Mapping[str, str], directory: str) -> int:
    """Run the instance on this process's descriptors; SIGTERM, SIGINT and SIGHUP end it. The exit status."""
    with asyncio.Runner() as runner:
        return runner.run(_run(environ, directory))


async def _run(environ: Mapping[str, str], directory: str) -> int:
    loop = asyncio.get_running_loop()
    with Cancellation() as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.cancel, f"received {number.name}")
        stdout, stderr = Writer(1), Writer(2)
        try:
            controller = Controller.from_environ(environ)
            records = Attending()
            log = debug.started_log(controller) if debug.is_wanted(environ) else ""
            async with (
                Shared(controller, debug_log=log) as shared,
                records.instance(environ, Path(directory), controller),
            ):
                status = await run_instance(
                    environ, Path(directory), shared=shared, stop=stop, stdout=stdout, stderr=stderr
                )
            await records.close()
            return status
        finally:
            stdout.close()
            stderr.close()
