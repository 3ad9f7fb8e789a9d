"""Whether a run's numbers can be believed: what its hosts were and did meanwhile, samples, and doubts."""
