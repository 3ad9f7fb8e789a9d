"""To one host: frames and the session without I/O, the link that carries them, and what reaches the host."""
