"""Nix: evaluating and building here, stores on hosts, and Nix's serve protocol between the two."""
