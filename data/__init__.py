"""The data side: datasets, the annotation cache, loading and mixing."""
