"""The stages of tool/benchmark.py."""
