"""The parts of the network, one module a part; `main/model.py` puts them together."""
