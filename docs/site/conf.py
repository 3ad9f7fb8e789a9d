"""Sphinx's settings for the site: the pages of docs/ as they are, and no generated page of the code."""

project = "remote-runner"
copyright = "the remote-runner authors"  # noqa: A001 (Sphinx's word)
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["site"]
html_title = project
html_theme = "alabaster"
html_extra_path = ["../schema"]
myst_heading_anchors = 3
# Pages link to files of the repository as well; tests/test_readme.py checks that they are there.
suppress_warnings = ["toc.not_included", "toc.excluded", "misc.highlighting_failure"]
nitpicky = True
