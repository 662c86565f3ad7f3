"""Compare this system with recorded results of the published one; see tool/published/run.py."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.published.run import main

if __name__ == "__main__":
    run_main(main)
