"""Look at the hand model, the checkpoint and the datasets: see `tool.checks.doctor`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.checks.doctor import main

if __name__ == "__main__":
    run_main(main)
