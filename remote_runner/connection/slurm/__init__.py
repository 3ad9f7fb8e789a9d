"""Nodes of a Slurm allocation, reached by its steps."""
