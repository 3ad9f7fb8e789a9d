"""Fabric's connection to a host, as a user's own tasks have it, over the host's agent."""
