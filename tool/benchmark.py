"""Measure speed and memory on this machine; see tool/benchmarks/run.py."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.benchmarks.run import main

if __name__ == "__main__":
    run_main(main)
