"""The connection to a host: frames and session without I/O, the link that carries them, and transports."""
