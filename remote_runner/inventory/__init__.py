"""The hosts and the application of a plan, and where each instance of a run goes."""
