"""Generated hands and datasets."""
