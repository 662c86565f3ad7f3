"""Write toy datasets in the official layouts: see `tool.toy.make_data`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.toy.make_data import main

if __name__ == "__main__":
    run_main(main)
