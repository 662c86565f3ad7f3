"""Download and unpack Re:InterHand (two hands, relit, ten captures, hundreds of GB).

    python download.py                                      # what there is to choose from
    python download.py --captures test                      # the test split as the default settings need it
    python download.py --captures RNS217,NKC880 --parts orig_fits,mano_fits
    python download.py --captures all --dry-run             # the plan with its sizes

Into data/ReInterHand/data. Interrupted? Run it again: it continues. Every file is checked against the publisher's
list of checksums.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import run_main
from data import download


def parse_args() -> argparse.Namespace:
    return download.parse_args("ReInterHand", __doc__ or "")


def main() -> None:
    download.run("ReInterHand", parse_args())


if __name__ == "__main__":
    run_main(main)
