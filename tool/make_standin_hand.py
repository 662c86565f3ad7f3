"""Write a stand-in for the licensed MANO files, so that everything runs without them. It is NOT MANO.

    python tool/make_standin_hand.py [--out DIR] [--seed N] [--left-shapedirs published|repaired]

Writes MANO_RIGHT.pkl and MANO_LEFT.pkl into DIR (default: common/utils/human_model_files/mano of this project). A file
there which is not a stand-in is never overwritten. `--left-shapedirs published` (the default) gives the left hand's
shape modes the wrong sign in x, as in the published left file, which readers repair; `repaired` gives the right one.
Exit code: 0; 2 with one line on stderr if a file cannot be written or is somebody's own.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import run_main  # noqa: E402
from common.options import MANO_FOLDER  # noqa: E402


def main() -> None:
    args = parse_args()
    from tool.toy.standin_hand import MODEL_NAME, write_standin

    for path in write_standin(args.out, args.seed, args.left_shapedirs):
        print(f"wrote {path}: {MODEL_NAME}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MANO_FOLDER, help="folder of the two files")
    parser.add_argument("--seed", type=int, default=0, help="varies the proportions slightly (default: 0)")
    parser.add_argument("--left-shapedirs", choices=("published", "repaired"), default="published")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
