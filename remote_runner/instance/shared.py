"""What the instances of a process share: connections, builds, pushes, forwards, and one client to each sync service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from remote_runner.cancellation import Cancellation, in_thread
from remote_runner.connection.agent import Agent
from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.forwards import Listener, LocalForward, Relayed
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import RemoteRunnerError
from remote_runner.instance.allocations import Allocations
from remote_runner.instance.run_log import RunLog
from remote_runner.instance.single_flight import SingleFlight
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import LOCALHOST, AppSettings, HostEntry, Inventory
from remote_runner.inventory.kinds import ForwardUsers
from remote_runner.inventory.known import remember_contact
from remote_runner.inventory.placement import Spread
from remote_runner.inventory.systems import System
from remote_runner.progress import Began, Building, Built, Moved, Tell, nobody
from testground.runenv import RunEnv
from testground.sync.shared_client import SharedSyncClient

if TYPE_CHECKING:
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.artifact.push import Pushed
    from remote_runner.instance.sbcasts import Sbcasts
    from remote_runner.truth.influx import Influx
    from remote_runner.truth.links import Links
    from remote_runner.truth.observation import Observation, RunOn
    from remote_runner.truth.watch import Watch

# Results of builds that are kept for the instances of a run that come later; on disk they stay longer.
_KEPT_BUILDS = 256
_PUSH_KEPT = 1024
_KEPT_OBSERVATIONS = 64
_LINGER_S = 2.0


def reached_by(entry: HostEntry) -> tuple[object, ...]:
    """What makes two entries the same connection: how the host is reached, and where our directory is on it."""
    return (entry.name, entry.ssh, entry.directory, entry.tolerate_s, entry.connect, entry.job, entry.by_step)


@dataclass
class _Host:
    """A connection, and what this process knows of the host behind it."""

    agent: Agent
    watch: Watch
    pushes: SingleFlight[tuple[object, ...], Pushed] = field(default_factory=lambda: SingleFlight(keeps=_PUSH_KEPT))
    listeners: SingleFlight[tuple[object, ...], Listener] = field(
        default_factory=lambda: SingleFlight(keeps=_PUSH_KEPT)
    )
    near_forwards: SingleFlight[tuple[object, ...], LocalForward] = field(
        default_factory=lambda: SingleFlight(keeps=_PUSH_KEPT)
    )


class Shared:
    """For one event loop; an async context manager that closes what it has opened.

    `tell` hears what goes on, also from other threads. `debug_log` is where it is, which each instance says.
    """

    def __init__(self, controller: Controller, tell: Tell = nobody, *, debug_log: str = "") -> None:
        self.controller = controller
        self.tell = tell
        self.debug_log = debug_log
        self._hosts: SingleFlight[tuple[object, ...], _Host] = SingleFlight(keeps=10_000)
        self._opened: list[_Host] = []
        self.asking: dict[int, dict[int, Relayed]] = {}
        """By the port of a service of this process that asks whose its connections are: these, by their ports here."""
        self._loaded = asyncio.Event()
        self._builds: SingleFlight[tuple[object, ...], AnyArtifact] = SingleFlight(
            keeps=_KEPT_BUILDS, keeps_failures=True
        )
        self._services: SingleFlight[tuple[str, int], SharedSyncClient] = SingleFlight(keeps=100)
        self._clients: list[SharedSyncClient] = []
        self._links: dict[Path, Links] = {}
        self._influxes: dict[tuple[str, str], Influx] = {}
        self._observations: dict[tuple[object, ...], Observation] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._logs: dict[Path | None, tuple[RunLog, int]] = {}
        self._inventories: dict[Path, tuple[object, Inventory]] = {}
        self._allocations = Allocations(controller, self._leave_nodes)
        self._hosts_of_runs: SingleFlight[tuple[object, ...], Inventory] = SingleFlight(keeps=64, keeps_failures=True)
        self._sbcasts: Sbcasts | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection."""
        observations = list(self._observations.values())
        await asyncio.gather(*(one.close() for one in observations), return_exceptions=True)
        opened, self._opened = self._opened, []
        clients, self._clients = self._clients, []
        await asyncio.gather(*(host.watch.close() for host in opened), return_exceptions=True)
        closing = [*(host.agent.close() for host in opened), *(client.close() for client in clients)]
        await asyncio.gather(*closing, return_exceptions=True)
        await self._allocations.close()

    @contextmanager
    def run_log(self, directory: Path | None, umask: int | None) -> Iterator[RunLog]:
        """The files that the instances of a run write together, as long as one of them is there."""
        log, users = self._logs.get(directory) or (RunLog(directory, umask), 0)
        self._logs[directory] = (log, users + 1)
        try:
            yield log
        finally:
            log, users = self._logs.pop(directory)
            if users > 1:
                self._logs[directory] = (log, users - 1)
            else:
                log.close()

    async def inventory(
        self,
        plan_dir: Path,
        runenv: RunEnv,
        environ: Mapping[str, str],
        report: Callable[[str], None],
        stack: ExitStack,
    ) -> Inventory:
        """The plan's inventory, the same for all instances of a run where hosts come from elsewhere.

        An allocation that is made for the run stays until all of its instances have closed their `stack`; `report`
        hears of waiting for it. Raises `InventoryError`, and what `read_for_run` raises.
        """
        inventory = self._read_inventory(plan_dir)
        if not inventory.sources:
            return inventory
        key = (plan_dir, runenv.run, inventory.text)
        if inventory.allocates:
            self._allocations.hold(plan_dir, runenv.run, runenv.instance_count, environ, stack)
        loop = asyncio.get_running_loop()

        def told(words: str) -> None:
            loop.call_soon_threadsafe(report, words)

        while True:
            found = await self._hosts_of_runs.get(
                key, lambda: self._with_hosts(inventory, plan_dir, runenv.run, environ, told)
            )
            if inventory.allocates:
                # Earlier instances here may have ended, and be giving the allocation back.
                await self._allocations.lock(plan_dir, runenv.run)
            if not inventory.allocates:
                return found
            if self._hosts_of_runs.peek(key) is found:
                self.hold_nodes(found.hosts, found.spread, stack)
                return found

    def hold_nodes(self, hosts: Sequence[HostEntry], spread: Spread, stack: ExitStack, instances: int = 1) -> None:
        """Until `stack` is closed, so many instances (or pushes by hand) have their places on these hosts.

        Then what all nodes of a Slurm allocation are to get may go to all of them at once.
        """
        if not any(host.by_step for host in hosts):
            return
        if self._sbcasts is None:
            from remote_runner.instance.sbcasts import Sbcasts

            self._sbcasts = Sbcasts(self.controller)
        self._sbcasts.hold(hosts, spread, stack, instances)

    async def _with_hosts(
        self,
        inventory: Inventory,
        plan_dir: Path,
        run_id: str,
        environ: Mapping[str, str],
        report: Callable[[str], None],
    ) -> Inventory:
        from remote_runner.inventory.sources.program import Asking
        from remote_runner.inventory.sources.reading import read_for_run

        if inventory.allocates:
            await self._allocations.lock(plan_dir, run_id)

        def read(cancellation: Cancellation) -> Inventory:
            asking = Asking(
                plan_dir, self.controller, environ, inventory.source_s, cancellation, inventory.allocate_s, report
            )
            listings = read_for_run(inventory.sources, asking, run_id)
            return inventory.with_hosts(listings, cache=self.controller.cache)

        return await in_thread(read, "nobody waits for the hosts any more")

    def _read_inventory(self, plan_dir: Path) -> Inventory:
        """What the file says; read anew when it is another one."""
        state = Inventory.state_of(plan_dir)
        found = self._inventories.get(plan_dir)
        if found is None or found[0] != state:
            found = self._inventories[plan_dir] = (state, Inventory.load(plan_dir, cache=self.controller.cache))
            while len(self._inventories) > 64:
                del self._inventories[next(iter(self._inventories))]
        return found[1]

    async def _leave_nodes(self, plan_dir: Path, run_id: str) -> None:
        """Close the connections to the nodes of a run's allocation, and forget who they were."""
        for key in self._hosts_of_runs.asked():
            if key[:2] != (plan_dir, run_id):
                continue
            inventory = self._hosts_of_runs.peek(key)
            self._hosts_of_runs.forget(key)
            found = [self._hosts.peek(reached_by(entry)) for entry in inventory.hosts if entry.job] if inventory else []
            nodes = [host for host in found if host is not None]
            self._opened = [host for host in self._opened if host not in nodes]
            await asyncio.gather(*(host.agent.close() for host in nodes), return_exceptions=True)

    # Connections

    async def agent(self, entry: HostEntry, environ: Mapping[str, str]) -> Agent:
        """The connection to a host: the one that is open, or a new one within `timeouts.connect_s`.

        Raises what `Agent.connect` raises.
        """
        return (await self._host(entry, environ)).agent

    def open_agent(self, entry: HostEntry) -> Agent | None:
        """The connection to a host, where one is open."""
        host = self._hosts.peek(reached_by(entry))
        return None if host is None or host.agent.is_lost else host.agent

    async def _host(self, entry: HostEntry, environ: Mapping[str, str]) -> _Host:
        key = reached_by(entry)
        host = self._hosts.peek(key)
        if host is not None:
            if not host.agent.is_lost:
                host.agent.reconnect_with(environ)
                return host
            self._hosts.forget(key)
            if host in self._opened:
                self._opened.remove(host)
        return await self._hosts.get(key, lambda: self._connect(entry, environ))

    async def _connect(self, entry: HostEntry, environ: Mapping[str, str]) -> _Host:
        self.tell(Began(entry.name, "connect", entry.name))
        within = Deadline.after(entry.timeouts.connect_s)
        agent = await Agent.connect(entry, self.controller, environ, within, self._load_steps, self.tell)
        from remote_runner.truth.watch import Watch

        host = _Host(agent, Watch(agent))
        self._opened.append(host)
        remember_contact(self.controller, entry, agent.system)
        return host

    async def agent_ahead(self, entry: HostEntry, environ: Mapping[str, str], stack: ExitStack) -> None:
        """Start the connection, which stays until `stack` is closed, and return once the login is under way.

        Its use tells what is wrong with it.
        """
        if self.open_agent(entry) is None:
            ahead = asyncio.ensure_future(self._host(entry, environ))
            ahead.add_done_callback(lambda done: done.cancelled() or done.exception())
            ahead.add_done_callback(lambda _: self._loaded.set())
            stack.callback(ahead.cancel)
            await self._loaded.wait()

    def _load_steps(self) -> None:
        """Load what is needed from here on: a third of all that is loaded, which the first login need not wait for."""
        from remote_runner.artifact import push
        from remote_runner.connection.verbs import run
        from remote_runner.instance import forwarding
        from remote_runner.truth import observation

        del push, run, forwarding, observation
        self._loaded.set()

    # What hosts do meanwhile

    def watch(self, entry: HostEntry, agent: Agent) -> Watch:
        """That of the connection."""
        from remote_runner.truth.watch import Watch

        host = self._hosts.peek(reached_by(entry))
        return host.watch if host is not None and host.agent is agent else Watch(agent)

    def observe(
        self, entry: HostEntry, run_on: RunOn, influxdb_url: str, told: Callable[[str], None], *, links: bool
    ) -> Observation:
        """What is known of a host during a run; the URL ("": none) and `links` count for the first who asks.

        told: gets words about the run's InfluxDB, from the youngest instance's on.
        """
        from remote_runner.truth.influx import Influx
        from remote_runner.truth.links import Links
        from remote_runner.truth.observation import Observation

        key = (reached_by(entry), run_on)
        influx = self._influxes.get((influxdb_url, run_on.run))
        if influx is not None:
            influx.told = told
        found = self._observations.get(key)
        if found is None:
            for old in [key for key, other in self._observations.items() if other.is_idle][:-_KEPT_OBSERVATIONS]:
                self._observations.pop(old).abandon()
            if influxdb_url and influx is None:
                influx = self._influxes[influxdb_url, run_on.run] = Influx(influxdb_url, told)
                while len(self._influxes) > _KEPT_OBSERVATIONS:
                    del self._influxes[next(iter(self._influxes))]
            ways = None
            if links and run_on.directory is not None:
                ways = self._links.setdefault(run_on.directory, Links(run_on.directory, run_on.umask))
            found = self._observations[key] = Observation(run_on, influx, ways)
            while len(self._links) > _KEPT_OBSERVATIONS:
                del self._links[next(iter(self._links))]
        return found

    # Builds

    async def artifact(
        self,
        app: AppSettings,
        system: System,
        *,
        plan_dir: Path,
        run_id: str,
        environ: Mapping[str, str],
        build_s: float,
    ) -> AnyArtifact:
        """The application for a system, built once for each run. Raises what `build_for` raises."""
        key = (run_id, plan_dir, app, system)
        return await self._builds.get(key, lambda: self.build(app, system, plan_dir, run_id, environ, build_s))

    async def build(
        self,
        app: AppSettings,
        system: System,
        plan_dir: Path,
        run_id: str | None,
        environ: Mapping[str, str],
        build_s: float,
    ) -> AnyArtifact:
        """The same, without sharing a result of this process; by hand (`run_id` is `None`) it is built anew."""

        from remote_runner.artifact.build import build_for

        def work(cancellation: Cancellation) -> AnyArtifact:
            return build_for(
                app,
                system,
                plan_dir=plan_dir,
                run_id=run_id,
                controller=self.controller,
                environ=environ,
                deadline=Deadline.after(build_s),
                cancellation=cancellation,
                began=lambda log: self.tell(Building(app.name, str(system), log)),
            )

        try:
            return await in_thread(work, "nobody waits for the build any more")
        finally:
            self.tell(Built(app.name, str(system)))

    # What is on a host

    async def push(
        self, entry: HostEntry, artifact: AnyArtifact, environ: Mapping[str, str], report: Callable[[str], None]
    ) -> Pushed:
        """Bring the artifact to the host, once for each connection. Raises what `push_artifact` raises."""
        host = await self._host(entry, environ)
        key = (artifact.hash, artifact.system, entry.store)
        known = host.pushes.peek(key)
        if known is not None:
            return known.again()
        is_ours = False

        def start() -> Awaitable[Pushed]:
            nonlocal is_ours
            is_ours = True
            return self._push(host.agent, entry, artifact, environ, report)

        pushed = await host.pushes.get(key, start)
        return pushed if is_ours else pushed.again()

    async def _push(
        self,
        agent: Agent,
        entry: HostEntry,
        artifact: AnyArtifact,
        environ: Mapping[str, str],
        report: Callable[[str], None],
    ) -> Pushed:
        from remote_runner.artifact.push import push_artifact

        def moved(done_bytes: int, total_bytes: int | None) -> None:
            self.tell(Moved(entry.name, "push", "", done_bytes, total_bytes))

        offer = None
        if self._sbcasts is not None:
            offer = self._sbcasts.offer(entry, str(agent.greeting.base), artifact, environ, report)
        try:
            return await push_artifact(agent, entry, artifact, self.controller, environ, report, moved, offer)
        finally:
            if offer is not None:
                offer.leave()
            self.tell(Moved(entry.name, "push", is_over=True))

    def forget_push(self, entry: HostEntry, artifact: AnyArtifact) -> None:
        """The host does not have it any more."""
        host = self._hosts.peek(reached_by(entry))
        if host is not None:
            host.pushes.forget((artifact.hash, artifact.system, entry.store))

    async def listener(
        self,
        entry: HostEntry,
        environ: Mapping[str, str],
        near: Endpoint,
        port: int,
        told: Callable[[str], None],
        stack: ExitStack,
    ) -> Listener:
        """A port of the host's loopback that leads to `near` until `stack` is closed.

        Others on the same connection share it. It stays for a moment after its last user, so that the next instance
        need not ask; nothing is dialled for who comes to it meanwhile.
        """
        host = await self._host(entry, environ)
        any_user = entry.forward_users is ForwardUsers.ANY
        key = (near, port, any_user)
        listener = host.listeners.peek(key)
        if listener is None:
            listener = await host.listeners.get(
                key,
                lambda: host.agent.listen(near, port, any_user=any_user, told=told, by_port=self.asking.get(near.port)),
            )
        stack.callback(self._let_go, host, key, listener)
        stack.enter_context(listener.use())
        return listener

    async def note_whose(self, port: int, service_port: int, relayed: Relayed) -> None:
        """Find out which instance on this machine has that connection to a service of this process."""
        with suppress(RemoteRunnerError, StreamClosed):
            for host in tuple(self._opened):
                if host.agent.name == LOCALHOST and not relayed.instance_id:
                    relayed.instance_id = await host.agent.whose(port, service_port)

    def _let_go(self, host: _Host, key: tuple[object, ...], listener: Listener) -> None:
        asyncio.get_running_loop().call_later(_LINGER_S, self._close_unused, host, key, listener)

    def _close_unused(self, host: _Host, key: tuple[object, ...], listener: Listener) -> None:
        if not listener.in_use and host.listeners.peek(key) is listener:
            host.listeners.forget(key)
            closing = asyncio.ensure_future(listener.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def near_forward(
        self, entry: HostEntry, environ: Mapping[str, str], far: Endpoint, port: int
    ) -> LocalForward:
        """A port on this machine's loopback that leads to `far`, dialled from the host, while it is in use."""
        host = await self._host(entry, environ)
        key = (far, port)
        forward = host.near_forwards.peek(key)
        if forward is not None and forward.is_open:
            return forward
        host.near_forwards.forget(key)
        return await host.near_forwards.get(key, lambda: host.agent.forward_local(far, port))

    # Services

    async def sync_service(self, host: str, port: int) -> SharedSyncClient:
        """The client of the sync service there. Raises `SyncUnreachableError`."""
        client = self._services.peek((host, port))
        if client is not None:
            if client.is_open:
                return client
            self._services.forget((host, port))
        return await self._services.get((host, port), lambda: self._open_service(host, port))

    async def _open_service(self, host: str, port: int) -> SharedSyncClient:
        client = await SharedSyncClient.open(host, port)
        self._clients = [*(other for other in self._clients if other.is_open), client]
        return client
