"""How a login becomes the agent of a session, and where the agent's program comes from."""
