"""Write a network for use without PyTorch; see main/export.py."""

import _checkout  # noqa: F401

from common.errors import run_main
from main.export import main

if __name__ == "__main__":
    run_main(main)
