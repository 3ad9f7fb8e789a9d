"""The report: a run's directory read into values, statistics, charts, and one self-contained HTML file."""
