"""This machine: its directories and locks, files, descriptors and programs, and how outputs are unpacked into it."""
