"""Compare this system with recorded figures of the published one.

    python tool/parity.py --golden DIR --mano DIR --snapshot FILE --inputs FILE.npz --out DIR

DIR of --golden holds the recorded figures (forward_test.npz, and forward_mid.npz and tolerance.json if there are any);
FILE.npz has one array `images` (N, 3, H, W), float32 in [0, 1]; the snapshot is in the published layout. Results are
written to --out under the recorded files' own names and keys. Prints the worst error of each tensor beside its
tolerance; exits 1 if one is outside.

It checks an installation, a device (--gpu), a library version or a refactoring. --amp bf16 shows what mixed precision
changes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import UserError, run_main  # noqa: E402

PARTS = ("forward",)


def main() -> int:
    args = parse_args()
    unknown = [part for part in args.what.split(",") if part not in PARTS]
    if unknown:
        raise UserError(f"--what {','.join(unknown)}: there is no such part; there are: {', '.join(PARTS)}")
    from tool import parity_forward

    reports = parity_forward.run(args)
    width = max(len(report.name) for report in reports)
    print(f"{'':{width}}  worst error  relative  tolerance")
    for report in reports:
        flag = "  OUTSIDE" if report.outside else ""
        print(f"{report.name:{width}}  {report.error:11.2e}  {report.relative:8.1e}  {report.tolerance:9.1e}{flag}")
    outside = sum(report.outside for report in reports)
    print(f"{len(reports)} compared, {outside} outside their tolerance; results in {args.out}")
    return 1 if outside else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder of recorded figures")
    parser.add_argument("--mano", type=Path, required=True, help="folder of the MANO files the figures were made with")
    parser.add_argument("--snapshot", type=Path, required=True, help="checkpoint the figures were made with")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz with `images` (N, 3, H, W)")
    parser.add_argument("--what", default=",".join(PARTS), help="parts, comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--gpu", default="cpu", help="a GPU's number, or cpu (default)")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision (default: off)")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
