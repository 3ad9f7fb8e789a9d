"""Fabric's connection for a user's own tasks, over the host's agent."""
