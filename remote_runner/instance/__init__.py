"""One instance of a run: its steps, record and log."""
