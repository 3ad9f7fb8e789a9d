"""Records a conversation: a run with outputs, a program with input, and a request that fails."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
from pathlib import Path

from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.job import Job
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import HostError
from remote_runner.inventory.inventory import Inventory
from tests.protocol import CONVERSATION
from tests.remote_runner.connection.programs import run_program

_HEADER = struct.Struct(">IBBIQ")
_WITH_MESSAGES = b"OMX"


async def _talk(directory: Path) -> None:
    tee = f"tee {directory}/client | /bin/sh -s | tee {directory}/agent"
    host = {"directory": f"{directory}/base", "connect": {"command": ["sh", "-c", tee]}}
    text = json.dumps({"hosts": {"there": host}})
    entry = Inventory.parse(text, directory / "inventory.yaml").host("there")
    environ = {
        "PATH": os.environ["PATH"],
        "REMOTE_RUNNER_RUNTIME_DIR": f"{directory}/runtime",
        "REMOTE_RUNNER_CACHE_DIR": f"{directory}/cache",
    }
    controller = Controller.from_environ(environ)
    # The first time the program goes there, which is no part of the conversation.
    await (await Agent.connect(entry, controller, environ, Deadline.after(120.0))).close()
    agent = await Agent.connect(entry, controller, environ, Deadline.after(120.0))

    async def sink(data: bytes) -> None:
        pass

    script = 'echo out; echo err >&2; echo "$GREETING" >"$TEST_OUTPUTS_PATH/greeting"; exit 3'
    run = await agent.start_run(Job("run-single-0", ("sh", "-c", script), {"GREETING": "a=b \u00fc"}))
    await run.follow(sink, sink)
    await run.fetch(directory / "outputs")
    await run.clean()
    await run_program(agent, ["cat"], stdin=b"\0\1\2")
    try:
        await agent.start_run(Job("run-single-1", ("/nowhere/program",), {}))
    except HostError as error:
        print(error)
    await agent.close()


def _frames(data: bytes) -> list[dict[str, object]]:
    """Each frame as bytes and as what it means."""
    found: list[dict[str, object]] = []
    while data:
        size, kind, lane, stream, number = _HEADER.unpack_from(data)
        payload = data[_HEADER.size : _HEADER.size + size]
        frame: dict[str, object] = {"kind": chr(kind), "lane": lane, "stream": stream, "number": number}
        if kind in _WITH_MESSAGES and payload:
            head, *fields = payload.split(b"\0")
            frame |= {"head": json.loads(head), "fields": [field.hex() for field in fields]}
        frame["payload"] = payload.hex()
        frame["bytes"] = data[: _HEADER.size + size].hex()
        found.append(frame)
        data = data[_HEADER.size + size :]
    return found


def main() -> None:
    """Record it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        asyncio.run(_talk(directory))
        client, agent = ((directory / side).read_bytes() for side in ("client", "agent"))
        hello = client.index(b"H" + bytes(13)) - 4  # behind the script
        greeting = agent.index(b"\n", agent.index(b'"protocol"')) + 1
        said = {"client": _frames(client[hello:]), "agent": _frames(agent[greeting:])}
    CONVERSATION.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
