from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from remote_runner.errors import InventoryError, RemoteRunnerError
from remote_runner.inventory.command_template import PLACEHOLDERS, fill
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import Direction, Forward, Inventory
from remote_runner.inventory.keys import KEYS, Place, keys_of
from remote_runner.inventory.kinds import Builder, BuildOn, StoreChoice
from remote_runner.inventory.placement import Entry, Spread
from remote_runner.inventory.systems import System
from tests.schemas import render_markdown

FULL = """\
spread: round
defaults:
  slots: 2
  env: {A: from-defaults, TOKEN: , ANSWER: no}
  ssh: {user: me, options: {Compression: yes}}
  grace_s: 3
app:
  name: node
  command: go build -o {out} "two words/{goos}"
  program: bin/node
  env: {A: from-app, B: from-app}
hosts:
  localhost:
  dex:
    system: aarch64-linux
    address: 192.0.2.7
    ssh:
      host: dex.example.org
      port: 2222
      identity_file: keys/id
      options: {ProxyJump: bastion}
    slots: 4
    labels: [lab, 10]
    groups: [server]
    forwards:
      - {to_host: 9090, name: metrics-1}
      - {to_host: "db:5432", port: 0}
      - {from_host: "[::1]:6060", port: 7070}
      - {from_host: 6061}
    service_ports: {sync: 5050}
    env: {A: 010, C: "$(x) 'y'"}
    directory: /srv/runs
    cache_limit: 1.5 GiB
    tolerate_s: 0.5
    timeouts: {connect_s: 5, run_s: 60}
    app: {program: bin/other, env: {B: from-host-app}}
  eno:
    labels: [lab]
    timeouts: {run_s: none}
"""


def parse(text: str) -> Inventory:
    return Inventory.parse(text, Path("/plan/inventory.yaml"))


def test_everything_an_inventory_says_is_read() -> None:
    inventory = parse(FULL)
    assert [host.name for host in inventory.hosts] == ["localhost", "dex", "eno"]
    assert inventory.spread is Spread.ROUND
    dex = inventory.host("dex")
    assert dex.ssh is not None
    assert (dex.ssh.name, dex.ssh.host, dex.ssh.user, dex.ssh.port) == ("dex", "dex.example.org", "me", 2222)
    assert dex.ssh.identity_file == "/plan/keys/id"
    assert dex.ssh.options == (("Compression", "yes"), ("ProxyJump", "bastion"))
    assert dex.system == System("aarch64", "linux")
    assert dex.address == "192.0.2.7"
    assert (dex.slots, dex.labels, dex.groups) == (4, ("lab", "10"), ("server",))
    assert dex.forwards == (
        Forward(Direction.TO_HOST, Endpoint("localhost", 9090), 9090, "metrics-1"),
        Forward(Direction.TO_HOST, Endpoint("db", 5432), 0),
        Forward(Direction.FROM_HOST, Endpoint("::1", 6060), 7070),
        Forward(Direction.FROM_HOST, Endpoint("localhost", 6061), 0),
    )
    assert dex.forwards[0].variable == "REMOTE_RUNNER_FORWARD_METRICS_1"
    assert dex.forwards[1].variable is None
    assert (dex.pinned_port("sync"), dex.pinned_port("redis")) == (5050, 0)
    assert dex.directory == "/srv/runs"
    assert dex.cache_limit_bytes == 3 << 29
    assert (dex.grace_s, dex.tolerate_s) == (3.0, 0.5)
    assert (dex.timeouts.connect_s, dex.timeouts.build_s, dex.timeouts.run_s) == (5.0, 600.0, 60.0)
    assert dex.app.name == "node"
    assert (dex.app.builder, dex.app.flake, dex.app.build_on) == (None, None, BuildOn.AUTO)
    assert dex.app.command == ("go", "build", "-o", "{out}", "two words/{goos}")
    assert dex.app.program == "bin/other"
    assert inventory.app.program == "bin/node"


def test_a_value_stays_the_text_that_was_written() -> None:
    dex = parse(FULL).host("dex")
    assert dict(dex.env) == {"A": "010", "ANSWER": "no", "B": "from-host-app", "C": "$(x) 'y'"}
    assert dex.pass_through == ("TOKEN",)


def test_a_host_that_says_nothing_has_the_defaults() -> None:
    localhost = parse(FULL).host("localhost")
    assert localhost.ssh is None
    assert localhost.is_local
    assert localhost.slots == 2
    assert dict(localhost.env) == {"A": "from-defaults", "B": "from-app", "ANSWER": "no"}
    assert localhost.timeouts.run_s is None
    assert localhost.cache_limit_bytes == 5 << 30
    assert (localhost.store, localhost.substitute) == (StoreChoice.AUTO, True)


def test_what_nix_does_is_set_for_all_and_for_one() -> None:
    inventory = parse(
        "defaults: {store: user, substitute: false}\n"
        "app: {name: node, flake: ./flakes, build_on: target}\n"
        "hosts: {a: {store: nix, app: {flake: 'github:some/where?dir=x'}}, b: {app: {build_on: local}}}\n"
    )
    a, b = inventory.hosts
    assert (a.store, a.substitute, a.app.flake) == (StoreChoice.NIX, False, "github:some/where?dir=x")
    assert (b.store, b.app.flake, b.app.build_on) == (StoreChoice.USER, "./flakes", BuildOn.LOCAL)


@pytest.mark.parametrize(
    ("own", "builder"),
    [
        ("command: cc", Builder.COMMAND),
        ("flake: .", Builder.NIX),
        ("program: x", None),
        ("command: cc, flake: .", None),
        ("command: cc, builder: nix", Builder.NIX),
    ],
)
def test_a_host_that_says_how_it_is_built_has_chosen_the_builder(own: str, builder: Builder | None) -> None:
    (host,) = parse(f"app: {{command: make, flake: ./other}}\nhosts: {{a: {{app: {{{own}}}}}}}\n").hosts
    assert host.app.builder is builder


def test_without_a_file_there_is_this_machine(tmp_path: Path) -> None:
    inventory = Inventory.load(tmp_path)
    assert [(host.name, host.is_local) for host in inventory.hosts] == [("localhost", True)]
    assert inventory.spread is Spread.FILL
    assert inventory.app.command is None
    assert inventory.entries == (Entry("localhost", slots=1),)


def test_an_empty_file_and_empty_sections_are_fine() -> None:
    for text in ("", "# nothing\n", "hosts:\ndefaults:\napp:\n", "hosts: {}\n"):
        assert [host.name for host in parse(text).hosts] == ["localhost"]


def test_the_next_process_need_not_import_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inventory.yaml").write_text(FULL)
    cache = tmp_path / "cache"
    cache.mkdir()
    first = Inventory.load(tmp_path, cache=cache)
    assert first == Inventory.load(tmp_path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert Inventory.load(tmp_path, cache=cache) == first
    (tmp_path / "inventory.yaml").write_text(FULL.replace("slots: 4", "slots: 5"))
    with pytest.raises(ImportError):
        Inventory.load(tmp_path, cache=cache)
    monkeypatch.undo()
    assert Inventory.load(tmp_path, cache=cache).host("dex").slots == 5


def test_a_kept_tree_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(FULL)
    expected = Inventory.load(tmp_path, cache=tmp_path)
    (kept,) = tmp_path.glob("*.json")
    whole = kept.read_text()
    for damaged in ("", "{}", "[]", whole[:-10], whole.replace("true", "false").replace("hosts", "hsots", 1)):
        kept.write_text(damaged)
        assert Inventory.load(tmp_path, cache=tmp_path) == expected
        assert kept.read_text() == whole


def test_a_kept_tree_that_was_cut_off_anywhere_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text("hosts: {a: {slots: 3, env: {A: }, labels: [x]}}\n")
    expected = Inventory.load(tmp_path, cache=tmp_path)
    (kept,) = tmp_path.glob("*.json")
    whole = kept.read_text()
    for size in range(len(whole)):
        kept.write_text(whole[:size])
        assert Inventory.load(tmp_path, cache=tmp_path) == expected
    for tree in ("1", "[1]", "[1, 2]", '[1, {"hosts": 1}]', '[1, {"hosts": [1]}]', '[1, "x"]', "[" * 5000 + "]" * 5000):
        kept.write_text(whole[: whole.index('"tree"')] + f'"tree": {tree}}}')
        assert Inventory.load(tmp_path, cache=tmp_path) == expected


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(FULL)
    (tmp_path / "file").touch()
    assert Inventory.load(tmp_path, cache=tmp_path / "file" / "below") == Inventory.load(tmp_path)


def test_errors_have_their_line_from_the_kept_tree_too(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text("hosts:\n  dex:\n    slots: many\n")
    for _ in range(2):
        with pytest.raises(InventoryError) as caught:
            Inventory.load(tmp_path, cache=tmp_path)
        assert caught.value.line == 3


def test_merge_keys_and_anchors_work() -> None:
    text = "defaults: {}\nhosts:\n  a: &a {slots: 3, labels: [x]}\n  b:\n    <<: *a\n    slots: 4\n"
    b = parse(text).host("b")
    assert (b.slots, b.labels) == (4, ("x",))


MISTAKES: list[tuple[str, int, str | None, str, str, tuple[str, ...]]] = [
    ("hosts:\n  a:\n    slot: 2\n", 3, "hosts.a.slot", "an unknown key", "slots", ("slots",)),
    ("hosts:\n  a:\n    user: me\n", 3, "hosts.a.user", "an unknown key", "ssh", ("ssh.user",)),
    (
        "hosts:\n  a:\n    connect_s: 3\n",
        3,
        "hosts.a.connect_s",
        "an unknown key",
        "timeouts",
        ("timeouts.connect_s",),
    ),
    ("host: {}\n", 1, "host", "an unknown key", "hosts", ("hosts",)),
    ("defaults: {address: x}\n", 1, "defaults.address", "the key here", "hosts.NAME", ()),
    ("hosts: {a: {slots: many}}\n", 1, "hosts.a.slots", "'many'", "whole number", ()),
    ("hosts: {a: {slots: -1}}\n", 1, "hosts.a.slots", "'-1'", "whole number", ()),
    ("hosts: {a: {slots: 1_0}}\n", 1, "hosts.a.slots", "'1_0'", "whole number", ()),
    ("hosts: {a: {slots: }}\n", 1, "hosts.a.slots", "nothing", "whole number", ()),
    ("hosts: {a: {slots: [1]}}\n", 1, "hosts.a.slots", "a list of 1", "whole number", ()),
    ("hosts: [a]\n", 1, "hosts", "a list of 1", "mapping of host names", ()),
    ("hosts: {a: {system: linux/amd64}}\n", 1, "hosts.a.system", "'linux/amd64'", "a system", ("x86_64-linux",)),
    ("hosts: {a: {ssh: {port: 70000}}}\n", 1, "hosts.a.ssh.port", "'70000'", "1 to 65535", ()),
    ("hosts: {a: {ssh: {host: -oX}}}\n", 1, "hosts.a.ssh.host", "'-oX'", "does not start with '-'", ()),
    ("hosts: {a: {ssh: {user: 'a b'}}}\n", 1, "hosts.a.ssh.user", "'a b'", "no spaces", ()),
    ("hosts: {a: {ssh: {options: {-F: x}}}}\n", 1, "hosts.a.ssh.options.-F", "the name '-F'", "ssh option", ()),
    ('hosts: {a: {ssh: {options: {A: "x\\ny"}}}}\n', 1, "hosts.a.ssh.options.A", "'x\\ny'", "control", ()),
    ("hosts: {a: {ssh: {options: {A: }}}}\n", 1, "hosts.a.ssh.options.A", "nothing", "a string", ()),
    ("hosts: {a: {env: {A-B: 1}}}\n", 1, "hosts.a.env.A-B", "the name 'A-B'", "variable's name", ()),
    ("hosts: {a: {env: {REMOTE_RUNNER_HOST: 1}}}\n", 1, "hosts.a.env.REMOTE_RUNNER_HOST", "", "another name", ()),
    ("hosts: {a: {env: {A: [1]}}}\n", 1, "hosts.a.env.A", "a list of 1", "a string", ()),
    ('hosts: {a: {env: {A: "\\0"}}}\n', 1, "hosts.a.env.A", "", "control", ()),
    ("hosts: {a: {env: [A]}}\n", 1, "hosts.a.env", "a list of 1", "mapping of variables", ()),
    ("hosts: {a: {directory: runs}}\n", 1, "hosts.a.directory", "'runs'", "absolute path", ()),
    ("hosts: {a: {directory: /a/../b}}\n", 1, "hosts.a.directory", "'/a/../b'", "absolute path", ()),
    ("hosts: {a: {cache_limit: 5 gigs}}\n", 1, "hosts.a.cache_limit", "'5 gigs'", "5 GiB", ()),
    ("hosts: {a: {grace_s: soon}}\n", 1, "hosts.a.grace_s", "'soon'", "seconds", ()),
    ("hosts: {a: {grace_s: 0}}\n", 1, "hosts.a.grace_s", "'0'", "seconds", ()),
    ("hosts: {a: {grace_s: nan}}\n", 1, "hosts.a.grace_s", "'nan'", "seconds", ()),
    ("hosts: {a: {grace_s: 1e300}}\n", 1, "hosts.a.grace_s", "'1e300'", "(at most 2000000)", ()),
    (f"hosts: {{a: {{grace_s: {'9' * 5000}}}}}\n", 1, "hosts.a.grace_s", "9…", "(at most 2000000)", ()),
    (f"hosts: {{a: {{cache_limit: {'9' * 320}}}}}\n", 1, "hosts.a.cache_limit", "9…", "(less than 8 EiB)", ()),
    (f"hosts: {{a: {{outputs_limit: {'9' * 5000} TiB}}}}\n", 1, "hosts.a.outputs_limit", "9…", "8 EiB", ()),
    ("hosts: {a: {outputs_limit: 8388608 TiB}}\n", 1, "hosts.a.outputs_limit", "TiB", "8 EiB", ()),
    (f"hosts: {{a: {{slots: {'9' * 5000}}}}}\n", 1, "hosts.a.slots", "9…", "1 to 1000", ()),
    (f"hosts: {{a: {{ssh: {{port: {'9' * 5000}}}}}}}\n", 1, "hosts.a.ssh.port", "9…", "a port", ()),
    ("hosts: {a: {timeouts: 3}}\n", 1, "hosts.a.timeouts", "'3'", "connect_s", ()),
    ("hosts: {a: {timeouts: {fetch_s: none}}}\n", 1, "hosts.a.timeouts.fetch_s", "'none'", "seconds", ()),
    ("hosts: {a: {forwards: [{port: 3}]}}\n", 1, "hosts.a.forwards[0]", "neither", "to_host and from_host", ()),
    ("hosts: {a: {forwards: [{to_host: 1, from_host: 2}]}}\n", 1, "hosts.a.forwards[0]", "both", "one of", ()),
    ("hosts: {a: {forwards: [{to_host: x}]}}\n", 1, "hosts.a.forwards[0].to_host", "'x'", "HOST:PORT", ()),
    (
        "hosts: {a: {forwards: [{tohost: 1}]}}\n",
        1,
        "hosts.a.forwards[0].tohost",
        "",
        "to_host",
        ("to_host", "from_host"),
    ),
    ("hosts: {a: {forwards: {to_host: 1}}}\n", 1, "hosts.a.forwards", "a mapping of to_host", "a list", ()),
    ("hosts: {a: {labels: lab}}\n", 1, "hosts.a.labels", "'lab'", "a list of words", ()),
    ("hosts: {localhost: {ssh: {user: x}}}\n", 1, "hosts.localhost.ssh", "some", "always this machine", ()),
    ("hosts:\n  -x: {}\n", 2, "hosts.-x", "'-x'", "does not start with '-'", ()),
    ("hosts: {'a b': }\n", 1, "hosts.a b", "'a b'", "no spaces", ()),
    ("hosts: {'a*': }\n", 1, "hosts.a*", "'a*'", "without @", ()),
    ("hosts:\n  a:\n  b:\n  a:\n", 4, "hosts.a", "line 2", "each key once", ()),
    ("spread: wide\n", 1, "spread", "'wide'", "`fill` or `round`", ()),
    ("app: {builder: make}\n", 1, "app.builder", "'make'", "`command` or `nix`", ()),
    ("app: {flake: '.#node'}\n", 1, "app.flake", "'.#node'", "without #", ()),
    ("app: {flake: --impure}\n", 1, "app.flake", "'--impure'", "a flake reference", ()),
    ("app: {build_on: host}\n", 1, "app.build_on", "'host'", "`auto`, `local` or `target`", ()),
    ("hosts: {a: {store: own}}\n", 1, "hosts.a.store", "'own'", "`auto`, `nix` or `user`", ()),
    ("defaults: {substitute: 1}\n", 1, "defaults.substitute", "'1'", "`true` or `false`", ()),
    ("app: {command: 'cc {sistem}'}\n", 1, "app.command", "{sistem}", "{system}", ("{system}",)),
    ('app: {command: "cc \'x"}\n', 1, "app.command", "", "no closing quotation", ()),
    ("app: {command: []}\n", 1, "app.command", "a list of 0", "a command", ()),
    ("app: {program: ../x}\n", 1, "app.program", "'../x'", "without ..", ()),
    ("app: {program: /x}\n", 1, "app.program", "'/x'", "relative", ()),
    ("hosts: [a,\n", 1, "", "bracket that is never closed", "[a, b]", ()),
    ("hosts:\n\t- a\n", 2, "", "a tab in the indentation", "spaces", ()),
    ("hosts:\n  a:\n    slots: 2\n   labels: [x]\n", 4, "", "indentation", "in the same column", ()),
    ("hosts:\n  a: {env: {A: b: c}}\n", 2, "", "a second colon", "in quotes", ()),
    ("hosts:\n  a:\n    env:\n      URL: http: x\n", 4, "", "a second colon", "in quotes", ()),
    ("hosts:\n  a: foo\n    slots: 2\n", 3, "", "a key below a value", "in the same column", ()),
    ('hosts:\n  a:\n    directory: "/x\n', 3, "", "a quote that is never closed", "closing", ()),
    ("hosts:\n  a:\n    directory: @x\n", 3, "", "a value that starts with '@'", "quotes", ()),
    ("hosts:\n  a\n  b:\n", 3, "", "the line above has no colon", "`key:`", ()),
    ("hosts: - a\n", 1, "", "a list's `-` behind a key", "a line of its own", ()),
    ("hosts:\n  a: *b\n", 2, "", "starts with `*`", "quotes", ()),
    ("hosts:\n  - nc1\n", 2, "hosts", "a list of 1", "`nc1:` in the place of `- nc1`", ()),
    ("hosts:\n  a:\n  slots: 3\n", 3, "hosts.slots", "the setting 'slots'", "further to the right", ()),
    ("hosts:\n  root@nc1:\n", 2, "hosts.root@nc1", "'root@nc1'", "`nc1: {ssh: {user: root}}`", ()),
    ("app: {command: 'make && cp x {out}'}\n", 1, "app.command", "`&&`", "sh -c 'make && cp x {out}'", ()),
    ("app: {command: 'gen > {out}'}\n", 1, "app.command", "`>`", "sh -c 'gen > {out}'", ()),
    ("app: {command: 'make; cp x {out}'}\n", 1, "app.command", "`;`", "sh -c 'make; cp x {out}'", ()),
    ("hosts: {a: {connect: {command: 'id | nc'}}}\n", 1, "hosts.a.connect.command", "`|`", "sh -c 'id | nc'", ()),
    ("hosts: nc1\n", 1, "hosts", "'nc1'", "`nc1:` in the place of `nc1`", ()),
    ("hosts:\n  nc1:22:\n", 2, "hosts.nc1:22", "'nc1:22'", "`nc1: {ssh: {port: 22}}`", ()),
    ("hosts: {a: 192.0.2.7}\n", 1, "hosts.a", "'192.0.2.7'", "`a: {ssh: {host: 192.0.2.7}}`", ()),
    ("hosts: {a: {ssh: me@b}}\n", 1, "hosts.a.ssh", "'me@b'", "`ssh: {host: b, user: me}`", ()),
    ("app: hello\n", 1, "app", "'hello'", "`app: {name: hello}`", ()),
    ("hosts: {a: {labels: lab}}\n", 1, "hosts.a.labels", "'lab'", "`[lab]`", ()),
    ("hosts: {a: {env: [A=1]}}\n", 1, "hosts.a.env", "a list of 1", '`{A: "1"}`', ()),
    ("hosts: {a: {env: A=1}}\n", 1, "hosts.a.env", "'A=1'", '`{A: "1"}`', ()),
    ("hosts: {a: {timeouts: {run_s: 2h}}}\n", 1, "hosts.a.timeouts.run_s", "'2h'", "a number alone: 7200", ()),
    ("timeouts: {run_s: 3}\n", 1, "timeouts", "the key here", "defaults or hosts.NAME", ()),
    ("a: &a [*a]\n", 1, None, "nested without end", "a tree", ()),
    ("just a text\n", 1, "", "'just a text'", "a mapping", ()),
    ("{? [a] : b}\n", 1, "", "a key that is not a text", "text", ()),
]


@pytest.mark.parametrize(("text", "line", "key", "found", "expected", "nearest"), MISTAKES)
def test_a_mistake_is_told_with_its_place(
    text: str, line: int, key: str | None, found: str, expected: str, nearest: tuple[str, ...]
) -> None:
    with pytest.raises(InventoryError) as caught:
        parse(text)
    error = caught.value
    assert error.line == line
    assert key is None or error.key == key
    assert found in error.found
    assert expected in error.expected
    assert error.nearest == nearest
    assert re.match(rf"inventory\.yaml:{line}(:\d+)?: {re.escape(error.key)}", str(error))
    if nearest:
        assert f"did you mean {' or '.join(nearest)}?" in str(error)


@pytest.mark.parametrize("loader", ["libyaml's", "Python's"])
def test_what_is_no_yaml_is_shown_with_a_caret(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "Python's":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(InventoryError) as caught:
        parse("hosts:\n  dex:\n    env: {A: @b}\n")
    assert str(caught.value).splitlines()[:3] == [
        "inventory.yaml:3:14: found a value that starts with '@', expected quotes around it",
        "  |     env: {A: @b}",
        "  |              ^",
    ]


def test_a_command_as_a_list_is_taken_as_it_is() -> None:
    inventory = parse("app: {command: [awk, '{{print}}', '>', '{out}']}\n")
    assert inventory.app.command == ("awk", "{{print}}", ">", "{out}")


def test_an_identity_file_that_is_missing_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    files = {"a": "key", "b": "kee", "c": "'%d/k'"}
    text = "".join(f"  {name}: {{ssh: {{identity_file: {file}}}}}\n" for name, file in files.items())
    hosts = Inventory.parse(f"hosts:\n{text}  d:\n", tmp_path / "inventory.yaml").hosts
    missing = [host.ssh.missing_identity_file() for host in hosts if host.ssh]
    assert missing == [None, tmp_path / "kee", None, None]


@pytest.mark.parametrize("text", ['hosts: {a: {env: {A: "x\\ud800"}}}\n', 'hosts: {"\\udcff": {}}\n'])
@pytest.mark.parametrize("loader", ["libyaml's", "Python's"])
def test_half_a_character_is_no_text(text: str, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "Python's":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(InventoryError, match=r"inventory.yaml:1(:\d+)?: .*found .*(half a character|invalid Unicode)"):
        parse(text)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_bytes(b"hosts: \xff\n")
    with pytest.raises(InventoryError, match="UTF-8"):
        Inventory.load(tmp_path)
    (tmp_path / "inventory.yaml").unlink()
    (tmp_path / "inventory.yaml").mkdir()
    with pytest.raises(InventoryError, match="readable file"):
        Inventory.load(tmp_path)


def test_no_tag_makes_an_object() -> None:
    with pytest.raises(InventoryError, match="list of 1"):
        parse("hosts: {a: {slots: !!python/object/apply:os.system [exit]}}\n")


def names(inventory: Inventory, *patterns: str) -> list[str]:
    return [host.name for host in inventory.select(patterns)]


def test_names_globs_and_labels_select_hosts() -> None:
    inventory = parse(FULL)
    assert names(inventory, "dex") == ["dex"]
    assert names(inventory, "@lab") == ["dex", "eno"]
    assert names(inventory, "e*", "*") == ["eno", "localhost", "dex"]
    assert names(inventory, "[de]?[xo]") == ["dex", "eno"]
    assert names(inventory, "eno", "@lab", "eno") == ["eno", "dex"]
    assert names(inventory) == []


def test_any_other_name_is_what_ssh_makes_of_it() -> None:
    inventory = parse(FULL)
    (other,) = inventory.select(["root@other.example.org"])
    assert other.ssh is not None
    assert (other.name, other.ssh.name) == ("root@other.example.org", "root@other.example.org")
    assert (other.ssh.host, other.ssh.user) == ("other.example.org", "root")
    assert other.slots == 2
    (plain,) = inventory.select(["::1"])
    assert plain.ssh is not None
    assert (plain.ssh.host, plain.ssh.user, plain.ssh.port) == ("::1", "me", None)


def test_localhost_is_this_machine_wherever_hosts_are_listed() -> None:
    assert parse("hosts: {dex: {}}").host("localhost").is_local


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("de*z", ["no host of the inventory matches"]),
        ("@lib", ["no host has this label", "did you mean @lab?"]),
        ("@", ["no host has this label"]),
        ("-oProxyCommand=x", ["does not start with '-'"]),
        ("dex eno", ["no spaces"]),
        ("dex\n", ["newlines", "did you mean dex?"]),
        ("", ["not empty"]),
        ("a;b", ["';'"]),
        ("$(x)", ["'$'"]),
        ("root@", ["not empty"]),
        ("-x@dex", ["does not start with '-'"]),
        ("b\udcfcro", ["no bytes that are no UTF-8"]),
    ],
)
def test_a_pattern_that_can_be_no_host_is_refused(pattern: str, words: list[str]) -> None:
    with pytest.raises(RemoteRunnerError) as caught:
        parse(FULL).select([pattern])
    for word in words:
        assert word in str(caught.value)


def test_the_nearest_names_are_found() -> None:
    assert parse(FULL).nearest("dxe") == ("dex",)
    assert parse(FULL).nearest("Localhst") == ("localhost",)
    assert parse(FULL).nearest("q") == ()


def test_hosts_become_the_list_for_placement() -> None:
    inventory = parse(FULL)
    assert inventory.entries[1] == Entry("dex", System("aarch64", "linux"), 4, "192.0.2.7", ("lab", "10"), ("server",))
    given = (Entry("dex", slots=1), Entry("other", System("x86_64", "linux")))
    assert inventory.complete(given) == (
        Entry("dex", System("aarch64", "linux"), 1, "192.0.2.7", ("lab", "10")),
        Entry("other", System("x86_64", "linux"), 2),
    )


def test_placeholders_are_filled_word_by_word() -> None:
    values = {name: f"<{name} 'x' {{out}}>" for name in PLACEHOLDERS}
    words = ("cc", "-o{out}", "{{goos}}", "{ x }", "{goos}/{goarch}", "{}")
    assert fill(words, values) == (
        "cc",
        f"-o{values['out']}",
        "{goos}",
        "{ x }",
        f"{values['goos']}/{values['goarch']}",
        "{}",
    )


def test_the_readme_section_documents_every_key_once() -> None:
    text = render_markdown()
    for key in KEYS:
        assert key.doc in text
        sections = 2 if key.name in ("name", "env", "command", "slots") else 1
        assert text.count(f"\n| `{key.name}` |") == sections
    for placeholder in PLACEHOLDERS:
        assert f"`{{{placeholder}}}`" in text
    assert all(
        line.count("|") in (3, 5) for line in text.splitlines() if line.startswith("|")
    )  # no cell breaks its table


def test_a_default_stands_once_in_the_table() -> None:
    for place in Place:
        assert len(keys_of(place)) == sum(place in key.places for key in KEYS)
