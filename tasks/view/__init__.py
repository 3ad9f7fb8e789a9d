"""The display of progress: how much is shown, as lines or as a live view."""
