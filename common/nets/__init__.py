"""The parts of the network, one module each; `main/model.py` connects them."""
