"""Tools that break inputs and processes on purpose."""
