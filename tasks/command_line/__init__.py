"""The command line: its options, mistakes and completion."""
