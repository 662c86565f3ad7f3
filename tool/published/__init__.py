"""The parts of tool/parity.py."""
