"""The `remote-runner` program: these tasks in any plan directory, with or without a fabfile there."""

from __future__ import annotations

import sys

import fabric


def main() -> None:
    """Run the tasks of this project on the plan one stands in."""
    from tasks import ns
    from tasks.command_line.completion import ASK, answer
    from tasks.command_line.executor import Executor
    from tasks.command_line.program import Program

    program = Program(
        name="remote-runner",
        binary="remote-runner",
        namespace=ns,
        executor_class=Executor,
        config_class=_Config,
    )
    if sys.argv[1:2] == [ASK]:
        answer(sys.argv[3:], ns, program)
        return
    program.run(sys.argv)


class _Config(fabric.Config):
    @staticmethod
    def global_defaults() -> dict[str, object]:
        """Fabric's own, with the user's ssh configuration left to OpenSSH."""
        return {**fabric.Config.global_defaults(), "load_ssh_configs": False}
