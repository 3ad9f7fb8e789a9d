"""Testground's sync service: its wire forms, a client, and a service for runs without a daemon."""

DEFAULT_HOST = "localhost"
"""Where SDKs look for the service unless SYNC_SERVICE_HOST says otherwise (the oldest: `testground-sync-service`)."""
DEFAULT_PORT = 5050
