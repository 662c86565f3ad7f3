"""Write a checkpoint of an untrained network: see `tool.untrained`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.untrained import main

if __name__ == "__main__":
    run_main(main)
