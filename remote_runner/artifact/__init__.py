"""Artifacts: built for a host's system, named by the hash of their content, pushed to the host."""
