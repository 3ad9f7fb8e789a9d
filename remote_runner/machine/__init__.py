"""This machine's programs, files and descriptors."""
