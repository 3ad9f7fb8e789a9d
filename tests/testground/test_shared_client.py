"""The asyncio client that all instances of a process share, against the embedded service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from websockets.sync.server import ServerConnection

from testground.errors import SyncClosedError, SyncError, SyncTimeoutError, SyncUnreachableError
from testground.sync.protocol import Response, encode_response
from testground.sync.service import SyncService
from testground.sync.shared_client import SharedSyncClient
from tests.testground.test_sync_client import misbehaving


@dataclass(frozen=True)
class Names:
    """A run's names."""

    run: str
    plan: str = "plan"
    case: str = "case"


def test_runs_count_apart_over_one_connection() -> None:
    async def ask(port: int) -> None:
        client = await SharedSyncClient.open("localhost", port)
        one, two = Names("one"), Names("two")
        numbers = await asyncio.gather(*(client.signal_entry(one, "state") for _ in range(100)))
        assert sorted(numbers) == list(range(1, 101))
        assert await client.signal_entry(two, "state") == 1
        await client.close()
        assert not client.is_open

    with SyncService() as service:
        asyncio.run(ask(service.port))


def test_messages_come_from_the_first_one_on() -> None:
    async def ask(port: int) -> None:
        client = await SharedSyncClient.open("localhost", port)
        names = Names("run")
        for number in range(3):
            assert await client.publish(names, "topic", {"number": number}) == number + 1
        got = []
        messages = client.subscribe(names, "topic", timeout_s=10.0)
        async for message in messages:
            got.append(message)
            if len(got) == 3:
                break
        await messages.aclose()
        assert got == [{"number": number} for number in range(3)]
        with pytest.raises(SyncTimeoutError):
            await anext(client.subscribe(names, "other", timeout_s=0.05))
        await client.close()

    with SyncService() as service:
        asyncio.run(ask(service.port))


def test_the_end_of_the_service_is_told_to_who_waits_and_who_asks_later() -> None:
    async def ask(service: SyncService) -> None:
        client = await SharedSyncClient.open("localhost", service.port)
        waiting = asyncio.create_task(anext(client.subscribe(Names("run"), "topic", timeout_s=30.0)))
        await client.signal_entry(Names("run"), "state")
        await asyncio.to_thread(service.__exit__, None, None, None)
        with pytest.raises(SyncClosedError):
            await waiting
        assert not client.is_open
        with pytest.raises(SyncClosedError):
            await client.signal_entry(Names("run"), "state")
        await client.close()

    service = SyncService()
    service.__enter__()
    asyncio.run(ask(service))


def test_nobody_at_the_port_is_told() -> None:
    async def ask() -> None:
        with pytest.raises(SyncUnreachableError):
            await SharedSyncClient.open("localhost", 1)

    asyncio.run(ask())


def test_a_topic_without_end_ends_who_does_not_take_it_and_nobody_else() -> None:
    async def ask(port: int) -> None:
        client = await SharedSyncClient.open("localhost", port)
        names = Names("run")
        messages = client.subscribe(names, "topic", timeout_s=10.0)
        await client.publish(names, "topic", "")
        await anext(messages)
        for _ in range(20):  # nobody takes any meanwhile
            await client.publish(names, "topic", "x" * 500_000)
        assert all([len(str(await anext(messages))) == 500_000 for _ in range(16)])
        with pytest.raises(SyncError, match="before one was taken"):
            await anext(messages)
        assert await client.signal_entry(names, "state") == 1
        await client.close()

    with SyncService() as service:
        asyncio.run(ask(service.port))


def test_a_message_that_is_no_json_is_an_answer_that_is_none() -> None:
    """The official service takes deeper ones than Python reads."""

    async def ask(port: int) -> None:
        client = await SharedSyncClient.open("localhost", port)
        with pytest.raises(SyncError, match=r"message of 'topic' was answered: \[\["):
            await anext(client.subscribe(Names("run"), "topic", timeout_s=10.0))
        await client.close()

    def handler(peer: ServerConnection) -> None:
        peer.recv()
        peer.send(encode_response(Response("0", subscribe="[" * 100_000)))
        for _ in peer:
            pass

    with misbehaving(handler) as port:
        asyncio.run(ask(port))
