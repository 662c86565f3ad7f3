"""Download and unpack HIC (two hands, and hands with objects, 640 x 480, MANO fits).

    python download.py                       # all sequences, into data/HIC/data
    python download.py --sequences 01,02     # or hands, objects
    python download.py --dry-run             # the plan with its sizes

Interrupted? Run it again: it continues. HIC.json has no address of its own; the end of the output says where to get it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import run_main
from data import download


def parse_args() -> argparse.Namespace:
    return download.parse_args("HIC", __doc__ or "")


def main() -> None:
    download.run("HIC", parse_args())


if __name__ == "__main__":
    run_main(main)
