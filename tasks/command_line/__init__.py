"""The line that a person types: its options, its mistakes, its completion."""
