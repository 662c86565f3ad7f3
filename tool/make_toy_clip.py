"""Write toy videos with known truth: see `tool.toy.clip`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.toy.clip import main

if __name__ == "__main__":
    run_main(main)
