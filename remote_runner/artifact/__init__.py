"""What runs on a host: built for its system, named by its content, brought there."""
