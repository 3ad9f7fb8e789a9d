"""A run as a page: what its directory holds as values, statistics, charts, and one self-contained HTML file."""
