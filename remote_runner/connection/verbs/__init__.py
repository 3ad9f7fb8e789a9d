"""What an agent is asked for, verb by verb, and what it answers, as values."""
