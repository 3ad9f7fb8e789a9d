"""The house's walls: which room may import which, that importing a module does nothing, which errors are classes."""

from __future__ import annotations

import ast
import builtins
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.hosts import which
from tests.needs import need

ROOT = Path(__file__).parent.parent
ROOMS = {
    "testground": set[str](),
    "remote_runner": {"testground"},
    "node": {"testground"},
    "tasks": {"remote_runner", "testground", "fabric", "invoke"},
}
GUARDED = {*ROOMS, "fabric", "invoke"}
# The rooms of remote_runner, from the lowest: each may import those before it, and what lies beside the rooms.
STOREYS = ("machine", "inventory", "connection", "artifact", "truth", "instance", "records", "report", "broker")
APART = {"demo"}
"""A machine for demo and tests; no room imports it."""
UNNAMED_ERRORS = {
    "WorkCancelledError": "nothing may take it for the work's own failure, so it is none of RemoteRunnerError's kinds"
}
"""Errors that nothing handles by name, and why they are classes all the same."""


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Top-level names of everything that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return frozenset(found)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        strangers = (imports_of(path) & GUARDED) - ROOMS[room] - {room}
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


def rooms_imported(path: Path) -> set[str]:
    """The rooms of remote_runner that a file imports from, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("remote_runner.")}
    return found & {*STOREYS, *APART}


@pytest.mark.parametrize("room", STOREYS)
def test_imports_go_downwards_only(room: str) -> None:
    allowed = {*STOREYS[: STOREYS.index(room) + 1]}
    files = sorted((ROOT / "remote_runner" / room).rglob("*.py"))
    assert files
    for path in files:
        assert rooms_imported(path) <= allowed, path.relative_to(ROOT)


def test_what_lies_beside_the_rooms_imports_none_but_the_lowest() -> None:
    # The first is the door, the other puts rooms together for tasks.
    may = {"__main__.py": {"machine", "broker"}, "leftovers_here.py": {*STOREYS}}
    for path in sorted((ROOT / "remote_runner").glob("*.py")):
        assert rooms_imported(path) <= may.get(path.name, {"machine"}), path.name


def test_rich_is_imported_only_where_a_view_is_drawn() -> None:
    drawing = ROOT / "tasks" / "view"
    importing = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "rich" in imports_of(path)]
    assert {path.relative_to(drawing).name for path in importing} == {"draw.py", "terminal.py"}


def names_in(*nodes: ast.AST) -> set[str]:
    """The names in these expressions; of a dotted one also its last part."""
    found = [node for each in nodes for node in ast.walk(each)]
    return {node.id for node in found if isinstance(node, ast.Name)} | {
        node.attr for node in found if isinstance(node, ast.Attribute)
    }


def is_builtin_error(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def test_an_error_is_a_class_only_where_something_handles_it() -> None:
    bases: dict[str, set[str]] = {}
    groups: dict[str, set[str]] = {}
    handled: set[str] = set()
    paths = [path for room in ("remote_runner", "tasks") for path in (ROOT / room).rglob("*.py")]
    for node in [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]:
        match node:
            case ast.ClassDef(name=name):
                bases[name] = names_in(*node.bases) - {name}  # Task(invoke.Task)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple()):
                groups[name] = names_in(node.value)
            case ast.ExceptHandler(type=ast.expr() as kinds) | ast.MatchClass(cls=kinds):
                handled |= names_in(kinds)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
                handled |= names_in(kinds)
            case ast.Call(func=ast.Name(id="suppress")):
                handled |= names_in(*node.args)
            case ast.Dict():  # from a kind of error to what it means
                handled |= names_in(*[key for key in node.keys if key is not None])
    handled |= {kind for name in handled & groups.keys() for kind in groups[name]}

    def is_error(name: str) -> bool:
        return is_builtin_error(name) or any(is_error(base) for base in bases.get(name, ()))

    def is_handled(name: str) -> bool:
        return name in handled or any(is_handled(kind) for kind in bases if name in bases[kind])

    errors = {name for name in bases if is_error(name)}
    assert {"RemoteRunnerError", "HostLostError", "StreamClosed"} <= errors
    assert {name for name in errors if not is_handled(name)} == set(UNNAMED_ERRORS)


def test_importing_every_module_does_nothing() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("testground", "remote_runner")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py", "sshd.py")
    ]
    script = f"""
import importlib, os, sys, threading
events = []
def audit(event, args):
    if event in ("socket.__new__", "subprocess.Popen", "os.fork", "os.putenv", "os.mkdir"):
        events.append((event, args))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        events.append((event, args))
sys.dont_write_bytecode = True
sys.addaudithook(audit)
for name in {modules!r}:
    importlib.import_module(name)
assert not events, events
assert threading.active_count() == 1
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("system", "processor"), [("linux", "amd64"), ("linux", "arm64"), ("darwin", "arm64")])
def test_the_launcher_builds_for_every_system_from_the_standard_library(system: str, processor: str) -> None:
    need("go")
    environ = {**os.environ, "GOOS": system, "GOARCH": processor, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [which("go"), "vet", "./exec-go"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "require" not in (ROOT / "go.mod").read_text(encoding="utf-8")


def test_the_launcher_is_formatted() -> None:
    need("go")
    gofmt = Path(which("go")).resolve().with_name("gofmt")
    done = subprocess.run([gofmt, "-l", "exec-go"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
