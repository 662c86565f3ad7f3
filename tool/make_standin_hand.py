"""Write a stand-in for the licensed MANO files: see `tool.toy.standin_hand`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.toy.standin_hand import main

if __name__ == "__main__":
    run_main(main)
