"""Commands beside the main three; each file's docstring is its manual."""
