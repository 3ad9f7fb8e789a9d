"""The embedded service as a server: many clients, slow ones, ports, memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as connect_sync

from testground.errors import SyncClosedError, SyncListenError, SyncUnreachableError
from testground.sync import websocket
from testground.sync.client import SyncClient
from testground.sync.core import Connection, SyncCore
from testground.sync.service import SyncService

CLIENTS = 300
PUBLISHERS = 5
MESSAGES_EACH = 10
STATE = "run:r:plan:p:case:c:states:s"
TOPIC = "run:r:plan:p:case:c:topics:t"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs ::1: give the loopback interface its IPv6 address")


def client_of(service: SyncService, run: str = "r") -> SyncClient:
    return SyncClient("127.0.0.1", service.port, run=run, plan="p", case="c", timeout_s=60)


def test_hundreds_of_clients_lose_and_reorder_nothing() -> None:
    """300 clients at once: each gets a number of its own, all pass one barrier, all read one topic alike."""

    async def play(port: int, start: asyncio.Event) -> tuple[int, list[str]]:
        async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, open_timeout=60) as peer:
            await start.wait()
            for request in (
                {"id": "subscribe", "subscribe": {"topic": TOPIC}},
                {"id": "signal", "signal_entry": {"state": STATE}},
                {"id": "barrier", "barrier": {"state": STATE, "target": CLIENTS}},
            ):
                await peer.send(json.dumps(request))
            number, messages, met = 0, list[str](), False
            while not met or len(messages) < PUBLISHERS * MESSAGES_EACH:
                answer = json.loads(await peer.recv())
                assert answer["error"] == ""
                if answer["id"] == "signal":
                    number = answer["signal_entry"]["seq"]
                    if number <= PUBLISHERS:
                        await publish(peer, number)
                elif answer["id"] == "barrier":
                    met = True
                elif answer["id"] == "subscribe":
                    messages.append(answer["subscribe"])
            return number, messages

    async def publish(peer: ClientConnection, publisher: int) -> None:
        for number in range(MESSAGES_EACH):
            await peer.send(json.dumps({"id": "publish", "publish": {"topic": TOPIC, "payload": [publisher, number]}}))

    async def all_at_once(port: int) -> list[tuple[int, list[str]]]:
        start = asyncio.Event()
        clients = [asyncio.create_task(play(port, start)) for _ in range(CLIENTS)]
        start.set()
        return await asyncio.wait_for(asyncio.gather(*clients), 120)

    with SyncService() as service:
        results = asyncio.run(all_at_once(service.port))
    assert sorted(number for number, _ in results) == list(range(1, CLIENTS + 1))
    first = results[0][1]
    assert all(messages == first for _, messages in results)
    read = [json.loads(message) for message in first]
    for publisher in range(1, PUBLISHERS + 1):
        assert [number for whose, number in read if whose == publisher] == list(range(MESSAGES_EACH))


def test_a_subscriber_that_does_not_read_stalls_nobody_and_misses_nothing() -> None:
    messages = 400  # 12 MB: beyond what the sockets of a loopback connection hold
    with SyncService(write_timeout_s=60) as service:
        slow = connect_sync(f"ws://127.0.0.1:{service.port}", compression=None, proxy=None, max_queue=1).__enter__()
        slow.send(json.dumps({"id": "t", "subscribe": {"topic": TOPIC}}))
        with client_of(service) as publisher, client_of(service) as quick:
            for number in range(messages):
                publisher.publish("t", f"{number} " + "x" * 30_000)
            subscription = quick.subscribe("t")
            assert [str(subscription.next(60)).split()[0] for _ in range(messages)] == [str(n) for n in range(messages)]
            received = [json.loads(json.loads(slow.recv(timeout=60))["subscribe"]).split()[0] for _ in range(messages)]
            assert received == [str(number) for number in range(messages)]
        slow.close()


@pytest.mark.slow
def test_it_stops_although_a_client_neither_reads_nor_leaves() -> None:
    with SyncService() as service:
        stuck = connect_sync(f"ws://127.0.0.1:{service.port}", compression=None, proxy=None, max_queue=1).__enter__()
        stuck.send(json.dumps({"id": "t", "subscribe": {"topic": TOPIC}}))
        with client_of(service) as publisher:
            for _ in range(400):
                publisher.publish("t", "x" * 30_000)
        start = time.monotonic()
    assert time.monotonic() - start < 15
    stuck.socket.close()
    stuck.close()


def test_messages_do_not_wait_for_a_ticker() -> None:
    """The official service delivers every 100 ms; 40 messages one after the other would take it 4 s."""
    with SyncService() as service, client_of(service) as publisher, client_of(service) as subscriber:
        subscription = subscriber.subscribe("t")
        start = time.monotonic()
        for number in range(40):
            publisher.publish("t", number)
            assert subscription.next(20) == number
        assert time.monotonic() - start < 2


def test_a_taken_port_is_named() -> None:
    with SyncService() as service:
        with pytest.raises(SyncListenError) as raised, SyncService(service.port):
            pass
    assert str(raised.value) == (
        f"sync service at 127.0.0.1:{service.port}: the port is taken\n"
        "  next: end the program that listens there (Testground's own sync service?), or take another port"
    )
    with SyncService(service.port) as again:  # and it is free again at once
        assert again.port == service.port


@needs_ipv6
def test_a_port_that_is_taken_on_the_other_loopback_address_is_named() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SyncListenError, match=rf"\[::1\]:{port}: the port is taken"), SyncService(port):
            pass
    with SyncService(port) as service:
        assert service.port == port


def test_a_number_that_is_no_port_is_refused() -> None:
    with pytest.raises(SyncListenError, match="no port number"), SyncService(70_000):
        pass


def test_it_listens_on_loopback_alone() -> None:
    def listening(port: int) -> set[str]:
        """Addresses (in the kernel's hexadecimal) that listen on the port, by proc(5)."""
        found: set[str] = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A" and int(local.split(":")[1], 16) == port:
                    found.add(local.split(":")[0])
        return found

    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs /proc/net (Linux) to see who listens where")
    with SyncService() as service:
        loopback = {"0100007F", "00000000000000000000000001000000"}
        assert listening(service.port) == (loopback if has_ipv6() else {"0100007F"})
        for host in ("127.0.0.1", "localhost", *(["::1"] if has_ipv6() else [])):
            with SyncClient(host, service.port, run="r", plan="p", case="c") as client:
                assert client.signal_entry("s")


def test_a_run_survives_that_nobody_is_connected_and_goes_at_its_owners_word() -> None:
    with SyncService() as service:
        for expected in (1, 2):
            with client_of(service) as client:
                assert client.signal_entry("s") == expected
        assert service.runs() == ("r",)
        assert service.forget_run("r")
        assert not service.forget_run("r")
        assert service.runs() == ()
        with client_of(service) as client:
            assert client.signal_entry("s") == 1


def test_an_idle_run_is_forgotten_by_itself() -> None:
    now_s = [0.0]
    with SyncService(idle_s=0.5, clock=lambda: now_s[0]) as service:
        with client_of(service, "idle") as client:
            client.signal_entry("s")
            now_s[0] = 10.0
        with client_of(service, "used") as client:
            client.signal_entry("s")
            now_s[0] = 20.0
            deadline = time.monotonic() + 20
            while service.runs() != ("used",) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            assert service.runs() == ("used",)


def test_pings_are_answered_and_fragments_are_one_message() -> None:
    with SyncService() as service, connect_sync(f"ws://127.0.0.1:{service.port}", proxy=None) as peer:
        assert peer.ping(b"anybody there").wait(20)
        peer.send(iter(['{"id":"0","signal', '_entry":', '{"state":"s"}}']))
        assert json.loads(peer.recv(timeout=20))["signal_entry"] == {"seq": 1}


def test_a_frame_that_breaks_the_protocol_ends_its_connection_after_the_answers() -> None:
    with SyncService() as service, connect_sync(f"ws://127.0.0.1:{service.port}", proxy=None) as peer:
        asked = json.dumps({"id": "0", "signal_entry": {"state": "s"}}).encode()
        peer.socket.sendall(websocket.frame(websocket.TEXT, asked, b"mask") + b"\xff" * 100_000)
        assert json.loads(peer.recv(timeout=20))["signal_entry"] == {"seq": 1}
        with pytest.raises(ConnectionClosedError) as raised:
            peer.recv(timeout=20)
        assert raised.value.rcvd is not None
        assert raised.value.rcvd.code == 1002


def test_hands_are_shaken_in_whatever_pieces_they_come_and_refused_with_a_reason() -> None:
    asked = websocket.frame(websocket.TEXT, b'{"id":"0","signal_entry":{"state":"s"}}', b"mask")
    head = websocket.request_head("localhost", "MDEyMzQ1Njc4OWFiY2RlZg==")
    with SyncService() as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in head[:-1]:
                peer.send(bytes([byte]))
            peer.sendall(head[-1:] + asked + websocket.frame(websocket.CLOSE, b"", b"mask"))
            said = b"".join(iter(lambda: peer.recv(4096), b""))
            assert said.startswith(b"HTTP/1.1 101 ")
            assert b'"signal_entry":{"seq":1}' in said
            assert said.endswith(websocket.frame(websocket.CLOSE, b""))
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.sendall(head.replace(b"GET", b"PUT"))
            assert peer.recv(4096).startswith(b"HTTP/1.1 426 ")
            assert peer.recv(4096) == b""


@pytest.mark.parametrize("goodbye", [b"", websocket.frame(websocket.CLOSE, b"", b"mask")])
def test_who_leaves_without_reading_is_cut_off(goodbye: bytes) -> None:
    with SyncService() as service, client_of(service) as publisher:
        for _ in range(400):
            publisher.publish("t", "x" * 30_000)
        asked = json.dumps({"id": "t", "subscribe": {"topic": TOPIC}}).encode()
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.sendall(websocket.request_head("localhost", "MDEyMzQ1Njc4OWFiY2RlZg=="))
            peer.sendall(websocket.frame(websocket.TEXT, asked, b"mask"))
            while len(peer.recv(100_000, socket.MSG_PEEK)) < 50_000:
                threading.Event().wait(0.01)
            peer.sendall(goodbye)
            peer.shutdown(socket.SHUT_WR)
            until_s = time.monotonic() + 20
            while len(service._peers) > 1 and time.monotonic() < until_s:
                threading.Event().wait(0.01)
            assert len(service._peers) == 1


def test_what_is_no_websocket_is_turned_away_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with SyncService() as service:
        for text in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", service.port), timeout=20) as stranger:
                stranger.sendall(text)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
        with client_of(service) as client:
            assert client.signal_entry("s") == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_with_no_more_files_it_takes_clients_again_when_others_have_gone() -> None:
    program = (
        "import resource; from testground.sync.service import serve_forever;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)); serve_forever(0, lambda port: print(port, flush=True))"
    )
    root = Path(__file__).resolve().parents[2]
    with ExitStack() as stack:
        argv = [sys.executable, "-c", program]
        served = stack.enter_context(subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE))
        stack.callback(served.kill)
        assert served.stdout is not None
        port = int(served.stdout.readline())
        with ExitStack() as crowd:
            for _ in range(40):
                crowd.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            with pytest.raises(SyncUnreachableError):
                SyncClient("127.0.0.1", port, run="r", plan="p", case="c", timeout_s=0.5).open()
        with SyncClient("127.0.0.1", port, run="r", plan="p", case="c") as client:
            assert client.signal_entry("s") == 1


def test_a_service_that_ended_by_itself_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(core: SyncCore, connection: Connection, frame: bytes) -> None:
        raise ArithmeticError("a defect")

    monkeypatch.setattr(SyncCore, "receive", receive)
    with pytest.raises(SyncListenError, match="ended by itself: a defect"), SyncService() as service:
        with client_of(service) as client, pytest.raises(SyncClosedError, match="without a word"):
            client.signal_entry("s")


def test_served_alone_it_ends_at_ctrl_c() -> None:
    program = (
        "from testground.sync.service import serve_forever; serve_forever(0, lambda port: print(port, flush=True))"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as served:
        try:
            assert served.stdout is not None
            port = int(served.stdout.readline())
            with SyncClient("localhost", port, run="r", plan="p", case="c") as client:
                assert client.signal_entry("s") == 1
                os.kill(served.pid, signal.SIGINT)
                assert served.wait(20) == 0
            assert served.stderr is not None
            assert served.stderr.read() == b""
        finally:
            served.kill()


@pytest.mark.slow
def test_the_time_of_a_client_stands_still_while_the_service_is_stopped() -> None:
    program = "from testground.sync import peer, service; peer._OPEN_TIMEOUT_S = 2.0\n"
    program += "service.serve_forever(0, lambda port: print(port, flush=True))"
    root = Path(__file__).resolve().parents[2]
    head = websocket.request_head("localhost", "MDEyMzQ1Njc4OWFiY2RlZg==")
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE) as served:
        try:
            assert served.stdout is not None
            port = int(served.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=20) as early:
                early.sendall(head[:20])
                with SyncClient("localhost", port, run="r", plan="p", case="c") as client:
                    assert client.signal_entry("s") == 1  # the other one was taken before
                os.kill(served.pid, signal.SIGSTOP)
                time.sleep(2.5)  # longer than it may take to open
                early.sendall(head[20:])
                os.kill(served.pid, signal.SIGCONT)
                assert early.recv(100).startswith(b"HTTP/1.1 101 ")
        finally:
            served.kill()


@pytest.mark.parametrize("action", ['"barrier":{"state":"x","target":0}', '"publish":{"topic":"x","payload":1}'])
def test_a_client_that_reads_no_answers_is_held_up_and_then_cut_off(action: str) -> None:
    asked = b'{"id":"' + b"i" * 10_000 + b'",' + action.encode() + b"}"
    frames = websocket.frame(websocket.TEXT, asked, b"mask") * 20
    with SyncService(write_timeout_s=1) as service, client_of(service) as other:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.sendall(websocket.request_head("localhost", "MDEyMzQ1Njc4OWFiY2RlZg=="))
            sent = held = 0
            with suppress(ConnectionResetError, BrokenPipeError):
                while sent < 64 * 2**20:
                    sent += peer.send(frames)
                    held = max(held, *(one._unsent_bytes for one in list(service._peers)))
        assert held < 3 * 2**20
        assert sent < 64 * 2**20  # what the sockets of both sides hold, and our queue
        assert other.signal_entry("s") == 1


def test_a_client_that_reads_late_gets_all_answers() -> None:
    with SyncService() as service, connect_sync(f"ws://127.0.0.1:{service.port}", proxy=None, max_queue=None) as peer:
        for number in range(5000):
            peer.send(json.dumps({"id": f"{number}" + "x" * 1000, "signal_entry": {"state": "s"}}))
        seqs = [json.loads(peer.recv(timeout=20))["signal_entry"]["seq"] for _ in range(5000)]
        assert seqs == list(range(1, 5001))
