"""Records of runs on this machine, and how they are found."""
