"""The experiment: its numbers (`config.py`) and its network (`model.py`)."""
