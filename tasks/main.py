"""The `remote-runner` program: these tasks in any plan directory, with or without a fabfile there."""

from __future__ import annotations

import sys

from tasks import ns


def main() -> None:
    """Run the tasks of this project on the plan one stands in."""
    from tasks.command_line.completion import ASK, answer
    from tasks.command_line.program import own_program

    program = own_program(ns)
    if sys.argv[1:2] == [ASK]:
        answer(sys.argv[3:], ns, program)
        return
    program.run(sys.argv)
