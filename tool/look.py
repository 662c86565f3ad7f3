"""Look at samples as training sees them: see `tool.checks.look`, or --help."""

import _checkout  # noqa: F401

from common.errors import run_main
from tool.checks.look import main

if __name__ == "__main__":
    run_main(main)
