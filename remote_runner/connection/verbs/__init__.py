"""The agent's verbs: each request, and its answer as a value."""
