"""Turning a login into a session's agent, and where the agent's program comes from."""
