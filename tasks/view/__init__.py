"""What a person sees while something goes on: how much of it, as lines or as a view that is drawn in place."""
