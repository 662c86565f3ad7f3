"""Download and unpack HIC (two hands, and hands with objects, 640 x 480, MANO fits).

    python download.py                       # all sequences, into data/HIC/data
    python download.py --sequences 01,02     # or hands, objects
    python download.py --dry-run             # the plan with its sizes

Interrupted? Run it again: it continues. HIC.json has no address of its own; where to get it is said at the end.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from common.errors import run_main  # noqa: E402
from common.options import Parser  # noqa: E402
from data import layouts  # noqa: E402


def main() -> None:
    args = parse_args()

    from data import download

    groups = {
        "all": layouts.HIC_SEQUENCES,
        "hands": layouts.HIC_HAND_SEQUENCES,
        "objects": layouts.HIC_OBJECT_SEQUENCES,
    }
    sequences = download.choose(args.sequences, groups, "--sequences")
    base = download.check_base(args.base)
    download.refuse_toy_data(args.output)
    download.print_terms("HIC")
    archives = [layouts.hic_archive(name) for name in (*sequences, "mano")]
    download.run_job(download.Job(base, args.output, [], archives, {}, args.keep), args.dry_run)
    if not (args.output / "HIC.json").exists():
        print(f"Still to do: {args.output / 'HIC.json'} is not there. {layouts.HIC_JSON_FROM}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output"})
    parser.add_argument(
        "--sequences",
        default="all",
        help="comma-separated: 01 to 11, 15 to 21, hands (01-11), objects (15-21), all (default)",
    )
    parser.add_argument("--base", default=layouts.HIC_BASE, help="address of the folder Dataset (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "data", help="folder (default: data/HIC/data)")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    parser.add_argument("--dry_run", action="store_true", help="show what would be downloaded, and how large it is")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
