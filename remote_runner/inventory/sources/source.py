"""An entry of `hosts_from` as a value, and what was read from it: hosts in the inventory's own words."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from remote_runner.inventory.yaml_tree import Mapping, Node, Scalar, Sequence


class SlurmConnect(Enum):
    """How an allocated node is reached."""

    SRUN = "srun"
    """By a step of the allocation."""
    SSH = "ssh"
    """By ssh, where the site lets users log in to nodes that are allocated to them."""


@dataclass(frozen=True)
class SshConfigSource:
    """The names of the user's ssh configuration that match `patterns` (as ssh_config(5) has them)."""

    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return f"ssh_config {','.join(self.patterns)}"


@dataclass(frozen=True)
class AnsibleSource:
    """Ansible's inventory at `path`; a relative one starts at the plan."""

    path: str

    def __str__(self) -> str:
        return f"ansible {self.path}"


@dataclass(frozen=True)
class CommandSource:
    """A program that prints hosts as JSON; it runs in the plan's directory."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"command {self.argv[0].rpartition('/')[2]}"


@dataclass(frozen=True)
class SlurmSource:
    """The nodes of an allocation: of the one that a run is in, else of one that is made for it.

    time: as salloc takes it. slots: instances on each node; `None`: as many as processors are allocated there.
    """

    nodes: int
    partition: str | None
    time: str | None
    options: tuple[str, ...]
    slots: int | None
    connect: SlurmConnect

    def __str__(self) -> str:
        return f"slurm {self.partition}" if self.partition else "slurm"


Source = SshConfigSource | AnsibleSource | CommandSource | SlurmSource


@dataclass(frozen=True)
class Listing:
    """What a source said: hosts by name, each with keys of `hosts.NAME` (JSON values), and what was left out, and why.

    source: the words for messages. how: in which way it was read, where that depends on this machine.
    job: the Slurm allocation whose nodes the hosts are; `by_step`: they are reached by its steps; `later`: there is
    none yet, for a run makes it.
    """

    source: str
    hosts: tuple[tuple[str, AnyMapping[str, Any]], ...]
    left_out: tuple[str, ...] = ()
    how: str = ""
    job: str = ""
    by_step: bool = False
    later: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "hosts": dict(self.hosts), "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, values: AnyMapping[str, Any]) -> Self:
        """What `to_json` made."""
        hosts = tuple(values["hosts"].items())
        return cls(**{**values, "hosts": hosts, "left_out": tuple(values["left_out"])})


def as_node(value: Any) -> Node:
    """A JSON value as the reader of the inventory takes it; it stands in no line."""
    if isinstance(value, AnyMapping):
        return Mapping({str(key): as_node(item) for key, item in value.items()}, dict.fromkeys(map(str, value), 0), 0)
    if isinstance(value, list | tuple):
        return Sequence(tuple(map(as_node, value)), 0)
    if value is None or isinstance(value, bool):
        return Scalar({None: "", True: "true", False: "false"}[value], value is None, 0)
    return Scalar(str(value), False, 0)
