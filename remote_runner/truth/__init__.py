"""Ground truth: whether a run's numbers can be trusted: the state of its hosts, samples, and doubts."""
