"""One instance of a run: its steps, its record, what it says."""
