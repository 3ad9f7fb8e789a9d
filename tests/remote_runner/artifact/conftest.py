"""The agent's program, built once for the session."""

from tests.remote_runner.connection.conftest import agents, built_agents

__all__ = ["agents", "built_agents"]
