"""What is kept of a run on this machine, and how it is found again."""
