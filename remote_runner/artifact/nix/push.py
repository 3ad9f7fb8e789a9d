"""Bringing what Nix built into a host's Nix store, or into the user's own store there.

Not by `nix copy`: a local `nix-store --serve` gives the paths, one on the host takes them (`serve.py`), in a session
of ours. What the host was asked for with `lock`, and what was added, is held as long as that server runs; before it
ends, a second session makes the root that stays. So no garbage collection takes a path in between.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from remote_runner.artifact.far_artifact import Delivery, Store
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.here import find_nix
from remote_runner.artifact.nix.progress import Progress, told_while_waiting
from remote_runner.artifact.nix.serve import PathInfo, ServeClient, in_dependency_order
from remote_runner.artifact.nix.source import LocalServer
from remote_runner.artifact.push_faults import disk_fault, push_fault
from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    FarBuildFailedError,
    NoFarStoreError,
    NoNixError,
    NotTrustedError,
    PushFailedError,
)
from remote_runner.far_shell import load_script
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.kinds import BuildOn, StoreChoice
from remote_runner.marks import CHUNK_BYTES
from remote_runner.probe import wrong_system

# A daemon's words for a path that it takes from nobody or from trusted users only (Nix 2.8; 2.12 and later).
_UNSIGNED = ("lacks a valid signature", "lacks a signature by a trusted key")


def push_to_store(
    host: Host,
    entry: HostEntry,
    artifact: StoreArtifact,
    *,
    controller: Controller,
    environ: Mapping[str, str],
    deadline: Deadline,
    report: Callable[[str], None],
) -> Delivery:
    """Make sure that a store on the host has the artifact, valid and rooted; only missing paths are sent.

    `environ` is where this machine's Nix is looked for; `report` is told how far a long copy is. Raises
    `WrongSystemError`, `NoFarStoreError`, `NotTrustedError`, `FarBuildFailedError`, `PushFailedError` and its kinds,
    `LocalProgramError`, `NoNixError`, `DeadlineError`, and what the connection raises.
    """
    push = _StorePush(host, entry, artifact, controller, environ, deadline, report)
    if entry.store is StoreChoice.USER:
        return push.into_user_store("hosts.store is user")
    if not artifact.here:
        return push.into_nix_store(build=True)
    try:
        return push.into_nix_store()
    except NotTrustedError as error:
        return push.built_there_instead(error)


@dataclass(frozen=True)
class _StorePush:
    host: Host
    entry: HostEntry
    artifact: StoreArtifact
    controller: Controller
    environ: Mapping[str, str]
    deadline: Deadline
    report: Callable[[str], None]

    def into_nix_store(self, *, build: bool = False) -> Delivery:
        """Into the host's own store; `build`: the derivation goes there, and the host builds it."""
        values = {
            "systems": self.artifact.system.unames,
            "directory": self.entry.directory or "",
            "out": self.artifact.out,
        }
        script = load_script("base.sh", "artifact/nix/store.sh", "artifact/nix/push.sh")
        what = f"push to {self.host.name}"
        # The server here gets ready (25 ms) while the connection opens.
        with self._source() as source, BriefSession(self.host, script, values, self.deadline, what) as session:
            word, rest = session.answer()
            if word == "asks":
                word, rest = self._store_answers(session, rest)
            if word == "serve":
                access, user, base = rest.split(" ", 2)
                delivery = self._serve(source, session, access, user, base, build=build)
                session.finish(_after(self.deadline))
                return delivery
            session.finish()
        if word == "have":
            return Delivery(Store.NIX, rest, present=True)
        if word == "system":
            raise wrong_system(self.entry, self.artifact.system, rest, controller=self.controller)
        reasons = {
            "none": "there is no Nix",
            "foreign": "its Nix store is another user's, and no nix-daemon listens",
            "refused": f"its nix-daemon does not serve this user ({rest})",
        }
        if word not in reasons:
            raise push_fault(self.host.name, word, rest)
        if self.entry.store is StoreChoice.NIX:
            raise NoFarStoreError(
                self.host.name,
                f"{reasons[word]}, and hosts.{self.host.name}.store in inventory.yaml is nix",
                next_step="set store: auto or user (a store of the user's own), or have Nix set up there for this user",
            )
        return self.into_user_store(reasons[word])

    def _store_answers(self, session: BriefSession, nix_store: str) -> tuple[str, str]:
        try:
            return session.answer()
        except DeadlineError as error:
            ask = f"ssh {self.host.name} {nix_store} --check-validity {self.artifact.out}"
            raise DeadlineError(
                f"{error.what}: asking its Nix whether it has {self.artifact.app}",
                error.seconds,
                next_step=f"see whether `{ask}` ends, whatever it says (a nix-daemon that hangs?); "
                "if it does, give it longer: `timeouts.push_s` in inventory.yaml",
            ) from error

    def into_user_store(self, why: str) -> Delivery:
        """Into the store under the user's own directory; `why` not into the host's own."""
        if not self.artifact.here:
            raise NoFarStoreError(
                self.host.name,
                f"it would have to build {self.artifact.app} itself ({self.artifact.why_not_here}), which it cannot: "
                f"{why}",
                next_step=f"let this machine build for {self.artifact.system} (a remote builder, or extra-platforms "
                f"in nix.conf), or have Nix set up on {self.host.name} for this user",
            )
        from remote_runner.artifact.nix.user_store import push_user_store

        with self._source() as source:
            closure = ServeClient(source)
            closure.greet()
            paths = closure.closure(self.artifact.out)
        return push_user_store(
            self.host,
            self.entry,
            self.artifact,
            paths,
            controller=self.controller,
            deadline=self.deadline,
            report=self.report,
        )

    def built_there_instead(self, error: NotTrustedError) -> Delivery:
        """What the host does not take from this user it may build itself; else `error`, with what can be done."""
        if not self.artifact.drv or self.entry.app.build_on is BuildOn.LOCAL:
            raise error
        self.report(f"{self.host.name}: its Nix does not trust this user, so it builds {self.artifact.app} itself")
        try:
            return self.into_nix_store(build=True)
        except FarBuildFailedError as failed:
            words = str(failed.args[0]).partition(": ")[2]
            raise NotTrustedError(
                self.host.name, f"{error.args[0].partition(': ')[2]}; {words}", next_step=error.next_step
            ) from failed

    def _source(self) -> LocalServer:
        nix = find_nix(self.environ)
        if nix is None:
            raise NoNixError(f"{self.artifact.out}, as a store path,")
        return LocalServer(nix, self.deadline)

    def _serve(
        self, source: LocalServer, session: BriefSession, access: str, user: str, base: str, *, build: bool
    ) -> Delivery:
        """The closure over the session that serves, then the root over one of its own."""
        artifact = self.artifact
        far = _FarServer(self.host.name, session)
        copy = _Copy(source, far, self.report)
        copy.find_missing(artifact.drv if build else artifact.out, substitute=self.entry.substitute and not build)
        if access == "untrusted" and copy.unsigned:
            raise self._not_trusted(user, copy.unsigned)
        try:
            copy.send()
            self._realise(base, copy.wait, build=build)
        except _UnsignedError as error:
            raise self._not_trusted(user, copy.unsigned) from error
        return Delivery(Store.NIX, base, False, copy.sent_bytes, len(copy.infos), copy.paths, built=build)

    def _realise(self, base: str, all_there: Callable[[], None], *, build: bool) -> None:
        """Make the root that stays, once `all_there` has returned."""
        artifact, host = self.artifact, self.host
        deadline = self.deadline
        if build and artifact.here:  # then nobody has reckoned with a build
            deadline = Deadline.after(self.entry.timeouts.build_s)
        values = {
            "base": base,
            "out": artifact.out,
            "drv": artifact.drv if build else "",
            "substitute": "true" if self.entry.substitute else "false",
        }
        what = f"build of {artifact.app} on {host.name}" if build else f"push to {host.name}"
        if build:
            self.report(f"{host.name}: builds {artifact.app} now")
        with BriefSession(host, load_script("base.sh", "artifact/nix/realise.sh"), values, deadline, what) as session:
            all_there()  # the session opens meanwhile
            session.send((b"now\n",), more=True)
            doing = "builds" if build else "roots"
            with told_while_waiting(f"{host.name}: still {doing} {artifact.app}", self.report):
                word, rest = session.answer()
            _, stderr = session.end()
        if word == "unbuilt":
            raise FarBuildFailedError(
                host.name,
                f"it could not build {artifact.drv} (status {rest})",
                stderr=stderr,
                next_step=f"see `nix log {artifact.drv}` there",
            )
        if word != "rooted":
            raise _push_fault(host.name, rest)

    def _not_trusted(self, user: str, unsigned: list[str]) -> NotTrustedError:
        name = self.host.name
        which = f" (such as {unsigned[0]})" if unsigned else ""
        return NotTrustedError(
            name,
            f"its nix-daemon does not trust user {user} and takes no path that nobody signed{which}",
            next_step=f"one of these ways:\n"
            f"    - let {name} build it itself: build_on: target under app in inventory.yaml\n"
            f"    - sign what is sent: nix key generate-secret --key-name {user}-1 > KEY; "
            f"nix store sign --recursive --key-file KEY {self.artifact.out}; on {name}, in /etc/nix/nix.conf: "
            f"extra-trusted-public-keys = (what `nix key convert-secret-to-public < KEY` prints), "
            f"then restart its nix-daemon\n"
            f"    - trust this user, on {name}, in /etc/nix/nix.conf: extra-trusted-users = {user}, "
            f"then restart its nix-daemon\n"
            f"    - or do without its store: store: user for {name} in inventory.yaml",
        )


class _UnsignedError(Exception):
    """The far server takes only signed paths; only for this file."""


class _FarServer:
    """The server at the other end of a session; a `Stream` for `ServeClient`."""

    def __init__(self, host: str, session: BriefSession) -> None:
        self.host = host
        self._session = session

    def write(self, data: bytes) -> None:
        if not self._session.write(data):
            self._fail()

    def read_some(self, count: int) -> bytes:
        data = self._session.read_some(count)
        if not data:
            self._fail()
        return data

    def send_from(self, source: LocalServer, count: int) -> int:
        """Send at least one and at most `count` of the next bytes of `source`; how many."""
        # Through this process 100 MB took a tenth more CPU, there and here together.
        if sys.platform == "linux" and (moved := self._session.splice(source.pipe(), count)) != 0:
            if moved is None:
                self._fail()
            return moved
        data = source.read_some(min(count, CHUNK_BYTES))
        self.write(data)
        return len(data)

    def _fail(self) -> NoReturn:
        _, stderr = self._session.end()
        if any(words in stderr for words in _UNSIGNED):
            raise _UnsignedError
        raise _push_fault(self.host, stderr)


class _Copy:
    """What is missing of a closure there, from one store to the other."""

    def __init__(self, near: LocalServer, far: _FarServer, report: Callable[[str], None]) -> None:
        self._near = near
        self._far = far
        self._source = ServeClient(near)
        self._sink = ServeClient(far)
        self._report = report
        self.paths = 0
        self.infos: list[PathInfo] = []
        self.sent_bytes = 0

    @property
    def unsigned(self) -> list[str]:
        """The missing paths that an untrusted user may not add."""
        return [info.path for info in self.infos if not info.ca and not info.signatures]

    def find_missing(self, path: str, *, substitute: bool) -> None:
        """Ask both stores; from here on all of the closure that is there, or will be, is held there."""
        self._source.greet()
        closure = self._source.closure(path)
        self._sink.greet()
        with told_while_waiting(f"{self._far.host}: still looks for what it has or can fetch itself", self._report):
            valid = self._sink.valid_paths(closure, lock=True, substitute=substitute)
        missing = [path for path in closure if path not in valid]
        self.infos = in_dependency_order(self._source.path_infos(missing)) if missing else []
        self.paths = len(closure)

    def send(self) -> None:
        """Send what is missing, without waiting for an answer."""
        total_bytes = sum(info.nar_bytes for info in self.infos)
        progress = Progress(self._far.host, len(self.infos), self._report, total_bytes=total_bytes)
        for number, info in enumerate(self._source.dump(self.infos), 1):
            self._sink.add(info)
            left = info.nar_bytes
            while left:
                moved = self._far.send_from(self._near, left)
                left -= moved
                progress.sent(moved, number)
        self.sent_bytes = progress.sent_bytes

    def wait(self) -> None:
        """Return once all that was sent is there."""
        for _ in self.infos:
            self._sink.added()


def _push_fault(host: str, said: str) -> PushFailedError:
    full = "make room in its Nix store, for example with nix-collect-garbage there"
    return disk_fault(host, said, full=full, read_only="make its Nix store writable") or PushFailedError(
        host, "its Nix store did not take the artifact", stderr=said
    )


def _after(deadline: Deadline) -> Deadline:
    # A build there has a time of its own; what is left to do is to end the session.
    return deadline if deadline.remaining_s > 10.0 else Deadline.after(10.0)
