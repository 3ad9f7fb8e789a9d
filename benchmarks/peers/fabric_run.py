"""Fabric, a process for each instance: `python fabric_run.py HOST PORT USER KEY COMMAND`."""

from __future__ import annotations

import sys

from fabric import Config, Connection


def main(host: str, port: str, user: str, key: str, command: str) -> None:
    """Run the command there; what it prints passes through."""
    keys = {"key_filename": key, "look_for_keys": False, "allow_agent": False}
    config = Config(lazy=True)
    connection = Connection(host, user=user, port=int(port), connect_kwargs=keys, config=config)
    connection.run(command, in_stream=False, pty=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
