"""Measure what a large annotation set costs; see tool/benchmarks/store.py."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.benchmarks.store import main

if __name__ == "__main__":
    run_main(main)
