"""Hosts from elsewhere: real files and programs, and what they become."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.controller import Controller
from remote_runner.errors import InventoryError, SourceError
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.reading import read_for_run, read_source
from remote_runner.inventory.sources.source import (
    AnsibleSource,
    CommandSource,
    Listing,
    SshConfigSource,
    as_node,
)
from remote_runner.inventory.sources.ssh_config import matches, names_of
from tests.needs import need


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """A plan's directory, and this test's environment."""
    plan = tmp_path / "plan"
    plan.mkdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    return Asking(plan, Controller(tmp_path / "runtime", cache), dict(os.environ), 10.0)


def without_ansible(asking: Asking, tmp_path: Path) -> Asking:
    """The same where no `ansible-inventory` is on PATH."""
    return Asking(asking.plan_dir, asking.controller, {"PATH": str(tmp_path / "nothing")}, 10.0)


def with_hosts(text: str, *listings: Listing) -> Inventory:
    return Inventory.parse(text, Path("/plan/inventory.yaml")).with_hosts(listings)


# In the inventory


def test_the_sources_are_read_from_the_inventory() -> None:
    inventory = Inventory.parse(
        "hosts_from:\n"
        "  - ssh_config: lab-*, !lab-9\n"
        "  - ansible: hosts.ini\n"
        "  - command: [./hosts, 'a b']\n"
        "defaults: {timeouts: {source_s: 5}}\n",
        Path("/plan/inventory.yaml"),
    )
    assert inventory.sources == (
        SshConfigSource(("lab-*", "!lab-9")),
        AnsibleSource("hosts.ini"),
        CommandSource(("./hosts", "a b")),
    )
    assert inventory.source_s == 5.0
    assert [host.name for host in inventory.hosts] == ["localhost"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{}", "hosts_from[0]: found none of them, expected one of ssh_config, ansible, command"),
        ("{ansible: a, command: b}", "found ansible and command"),
        ("{sshconfig: a}", "did you mean ssh_config?"),
        ("{command: []}", "expected a program with its arguments"),
        ("lab-*", "expected a mapping"),
    ],
)
def test_an_entry_that_is_none_is_named(entry: str, words: str) -> None:
    with pytest.raises(InventoryError, match=re.escape(words)):
        Inventory.parse(f"hosts_from:\n  - {entry}\n", Path("/plan/inventory.yaml"))


def test_hosts_come_in_order_and_the_inventory_wins() -> None:
    first = Listing("command a", (("c", {"slots": 2, "labels": ["x"]}), ("b", {"ssh": {"host": "b.example.org"}})))
    second = Listing("command b", (("d", {}), ("c", {"slots": 9, "address": "192.0.2.3"})))
    inventory = with_hosts("hosts: {a: , b: {slots: 5}}\ndefaults: {slots: 3}\n", first, second)
    a, b, c, d = inventory.hosts
    assert [host.name for host in inventory.hosts] == ["a", "b", "c", "d"]
    assert [host.slots for host in inventory.hosts] == [3, 5, 2, 3]
    assert [host.source for host in (a, b, c, d)] == ["inventory.yaml", "command a", "command a", "command b"]
    assert b.ssh is not None
    assert b.ssh.host == "b.example.org"
    assert (c.labels, c.address) == (("x",), "192.0.2.3")
    assert not inventory.sources


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({"a": {"slots": "many"}}, "hosts_from: command x: a.slots: found 'many', expected a whole number"),
        ({"a": {"slot": 1}}, "did you mean slots?"),
        ({"-a": {}}, "'-a'"),
        ({"a*": {}}, "expected a host's name without"),
        ({}, "found no host (command x: none)"),
    ],
)
def test_what_is_no_host_is_named_with_its_source(hosts: Mapping[str, Any], words: str) -> None:
    with pytest.raises(InventoryError, match=re.escape(words)):
        with_hosts("", Listing("command x", tuple(hosts.items())))


def test_json_is_read_as_yaml_is() -> None:
    values = {"env": {"A": None, "B": 7, "C": True}, "ssh": {"port": 22}, "labels": ["a", 5], "tolerate_s": 1.5}
    (host,) = with_hosts("", Listing("x", (("a", values),))).hosts
    assert (host.env, host.pass_through) == ((("B", "7"), ("C", "true")), ("A",))
    assert (host.labels, host.tolerate_s) == (("a", "5"), 1.5)
    assert as_node(None) != as_node("")


# ssh_config


def test_names_of_a_configuration_with_includes(tmp_path: Path) -> None:
    ssh = tmp_path / ".ssh"
    (ssh / "conf.d").mkdir(parents=True)
    (ssh / "config").write_text(
        "# Host no\n"
        "host = lab-1 'lab-2' *.example.org !lab-3 # lab-4\n"
        "  HostName 192.0.2.1\n"
        "Include conf.d/*.conf ~/other\n"
        "Match host lab-9\n"
        "  Include matched\n"
        "Host lab-?\n"
        "  Include below\n"
        "Host last\n"
    )
    (ssh / "conf.d" / "b.conf").write_text("Host lab-b\n")
    (ssh / "conf.d" / "a.conf").write_text("Host lab-a\nInclude config\n")
    (ssh / "matched").write_text("Host in-match\n")
    (ssh / "below").write_text("Host lab-5 elsewhere\n")
    (tmp_path / "other").write_text("HOST lab-1 lab-o\n")
    found = list(dict.fromkeys(names_of(ssh / "config", tmp_path)))
    # What follows an Include in an included file is still below that file's own Host line.
    assert found == ["lab-1", "lab-2", "in-match", "lab-5", "last"]
    (ssh / "config").write_text("Include conf.d/*.conf ~/other\nHost lab-2\n")
    (ssh / "conf.d" / "a.conf").write_text("Host lab-a\n")
    assert list(names_of(ssh / "config", tmp_path)) == ["lab-a", "lab-b", "lab-1", "lab-o", "lab-2"]


def test_a_configuration_that_includes_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"Include {tmp_path}/config\nHost a\n")
    assert set(names_of(tmp_path / "config", tmp_path)) == {"a"}


def test_patterns_are_those_of_ssh() -> None:
    assert matches("lab-1", ("lab-*",))
    assert matches("lab-1", ("lab-?",))
    assert not matches("lab-10", ("lab-?",))
    assert not matches("lab-1", ("lab-*", "!lab-1"))
    assert not matches("lab-1", ("!lab-2",))
    assert not matches("la[b]", ("la[b]x",))


def test_the_configuration_is_the_one_that_ssh_reads(asking: Asking, ssh_config: Path | None, tmp_path: Path) -> None:
    need("ssh")
    assert ssh_config is not None
    (tmp_path / "more").write_text("Host lab-2 lab-3\n  Port 2222\n")
    ssh_config.write_text(f"Host lab-1 other la$b lab-x@y\n  User me\nHost *\nInclude {tmp_path}/mo*\n")
    listing = read_source(SshConfigSource(("la*", "!lab-3")), asking)
    assert listing.hosts == (("lab-1", {}), ("lab-2", {}))
    assert [words.partition(":")[0] for words in listing.left_out] == ["la$b", "lab-x@y"]


def test_without_a_configuration_that_is_said(asking: Asking, ssh_config: Path | None) -> None:
    need("ssh")
    assert ssh_config is not None
    ssh_config.unlink()
    with pytest.raises(SourceError, match=r"ssh_config a: the user has no ssh configuration that can be read"):
        read_source(SshConfigSource(("a",)), asking)


# ansible

INI = """\
# how it is
lone ansible_host=192.0.2.9 ansible_connection=local

[web]
web[01:03].example.org:2222 ansible_user=deploy
odd ansible_host="{{ secret }}"

[db]
db-[a:b] ansible_ssh_private_key_file=~/.ssh/db  # both
localhost ansible_connection=local ansible_port=1

[all:vars]
ansible_user=everybody

[lab:children]
web
db

[lab:vars]
ansible_port=2200
"""
YAML = """\
all:
  vars: {ansible_user: everybody}
  hosts:
    lone: {ansible_host: 192.0.2.9, ansible_connection: local}
  children:
    lab:
      vars: {ansible_port: 2200}
      children:
        web:
          hosts:
            web[01:03].example.org: {ansible_user: deploy, ansible_port: 2222}
            odd: {ansible_host: "{{ secret }}"}
        db:
          hosts:
            db-[a:b]: {ansible_ssh_private_key_file: ~/.ssh/db}
            localhost: {ansible_connection: local, ansible_port: 1}
"""


def shown(listing: Listing) -> dict[str, Any]:
    """The hosts with numbers as text: INI has no others."""
    return {
        name: {
            "ssh": {key: str(value) for key, value in keys.get("ssh", {}).items()},
            "command": keys.get("connect", {}).get("command"),
            "labels": sorted(keys["labels"]),
        }
        for name, keys in listing.hosts
    }


EXPECTED = {
    "lone": {"ssh": {}, "command": ["/bin/sh", "-s"], "labels": []},
    **{
        f"web0{n}.example.org": {"ssh": {"user": "deploy", "port": "2222"}, "command": None, "labels": ["lab", "web"]}
        for n in (1, 2, 3)
    },
    **{
        f"db-{n}": {
            "ssh": {"user": "everybody", "port": "2200", "identity_file": "~/.ssh/db"},
            "command": None,
            "labels": ["db", "lab"],
        }
        for n in "ab"
    },
    "localhost": {"ssh": {}, "command": None, "labels": ["db", "lab"]},
}


@pytest.mark.parametrize("name", ["hosts", "hosts.yml"])
@pytest.mark.parametrize("with_ansible", [False, True])
def test_an_ansible_inventory(asking: Asking, tmp_path: Path, name: str, with_ansible: bool) -> None:
    (asking.plan_dir / name).write_text(YAML if name.endswith("yml") else INI)
    if with_ansible:
        need("ansible")
    else:
        asking = without_ansible(asking, tmp_path)
    said: list[str] = []
    listing = read_source(AnsibleSource(name), replace(asking, report=said.append))
    how = "read as a file, without Ansible's plugins: ansible-inventory is not on PATH"
    assert (listing.how, said) == (("", []) if with_ansible else (how, [f"ansible {name}: {how}"]))
    assert Listing.from_json(json.loads(json.dumps(listing.to_json()))) == listing
    assert shown(listing) == EXPECTED
    assert listing.left_out == ("odd: ansible_host is a template; list it in inventory.yaml, with ssh.host",)
    inventory = with_hosts("", listing)
    assert {host.name for host in inventory.select(["@web"])} == {f"web0{n}.example.org" for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.ini", "[web\n", "line 1 is no section: [web"),
        ("a.ini", "[web]\nhost what\n", "line 2 is no host with variables"),
        ("a.ini", "x[1:a]\n", "x[1:a] has no range"),
        ("a.ini", f"x[1:{'9' * 5000}]\n", "has no range"),
        ("a.ini", f"x[1:2:{'9' * 5000}]\n", "has no range"),
        ("a.ini", "x" + "[1:1000]" * 5 + "\n", "has no range"),
        ("a.ini", "[a]\nh\n[c]\ni\n[a:children]\nb\n[b:children]\na\nc\n", "in a circle: a > b > a"),
        ("a.ini", "[t:children]\na\n[a:children]\na\n", "in a circle: a > a"),
        ("a.yml", "all: [\n", "it is no YAML"),
        ("a.yml", "all: " + "[" * 100_000, "it is no YAML"),
        ("a.yml", "all: {hosts: [a]}\n", "all.hosts is no mapping"),
        ("a", "#!/bin/sh\n", "is a program, and ansible-inventory, which runs it, is not installed"),
    ],
)
def test_a_file_that_is_no_ansible_inventory(asking: Asking, tmp_path: Path, name: str, text: str, words: str) -> None:
    (asking.plan_dir / name).write_text(text)
    with pytest.raises(SourceError, match=re.escape(words)):
        read_source(AnsibleSource(name), without_ansible(asking, tmp_path))


def test_an_ansible_inventory_that_is_not_there(asking: Asking) -> None:
    with pytest.raises(SourceError, match=r"ansible gone.ini: .*gone.ini is not there"):
        read_source(AnsibleSource("gone.ini"), asking)
    with pytest.raises(SourceError, match=r"ansible ~nobody-at-all/hosts: .*nobody's home is known here\n  next: "):
        read_source(AnsibleSource("~nobody-at-all/hosts"), asking)


# A command


@pytest.mark.parametrize(
    ("printed", "hosts"),
    [
        ('["a", "b"]', {"a": {}, "b": {}}),
        ('[{"name": "a", "slots": 2}, "b"]', {"a": {"slots": 2}, "b": {}}),
        ('{"a": {"ssh": {"host": "192.0.2.1"}}, "b": null}', {"a": {"ssh": {"host": "192.0.2.1"}}, "b": {}}),
    ],
)
def test_what_a_command_may_print(asking: Asking, printed: str, hosts: dict[str, Any]) -> None:
    listing = read_source(CommandSource(("/bin/sh", "-c", 'cat; printf %s "$0"', printed)), asking)
    assert dict(listing.hosts) == hosts
    assert Listing.from_json(json.loads(json.dumps(listing.to_json()))) == listing


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo it broke >&2; exit 3", ["hosts_from: command sh: `sh -c ", "ended with status 3", "| it broke"]),
        ("echo no json", ["it prints what is no list of hosts", "| no json"]),
        ("echo 7", ["found int", "expected a list of names"]),
        ("echo '[{}]'", ["entry 1 has no name"]),
        ("""echo '["a", "b", {"name": "a"}]'""", ["(a is named twice)"]),
        ("""echo '{"b": {}, "b": {"slots": 2}}'""", ["(b is named twice)"]),
        ("echo waiting >&2; sleep 60", ["did not end within 0.5 s", "| waiting", "source_s"]),
    ],
)
def test_a_command_that_gives_no_hosts_is_told(asking: Asking, script: str, words: list[str]) -> None:
    soon = Asking(asking.plan_dir, asking.controller, asking.environ, 0.5 if "sleep" in script else 10.0)
    with pytest.raises(SourceError) as told:
        read_source(CommandSource(("sh", "-c", script)), soon)
    for part in (*words, "next: "):
        assert part in str(told.value)


def test_a_command_that_is_not_there(asking: Asking) -> None:
    with pytest.raises(SourceError, match=r"cannot be started"):
        read_source(CommandSource(("./no-such-thing",)), asking)


# Once for a run


def test_all_of_a_run_see_what_the_first_saw(asking: Asking) -> None:
    counting = CommandSource(("sh", "-c", "echo x >>count; printf '[\"host-%d\"]' $(wc -l <count)"))
    found: list[list[Listing]] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_for_run([counting], asking, "run-1"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [listings[0].hosts for listings in found] == [(("host-1", {}),)] * 8
    assert read_for_run([counting], asking, "run-2")[0].hosts == (("host-2", {}),)
    assert (asking.plan_dir / "count").read_text().count("x") == 2


def test_all_of_a_run_share_a_failure(asking: Asking) -> None:
    failing = CommandSource(("sh", "-c", "echo x >>count; exit 1"))
    for _ in range(3):
        with pytest.raises(SourceError, match=r"ended with status 1"):
            read_for_run([failing], asking, "run")
    assert (asking.plan_dir / "count").read_text().count("x") == 1
