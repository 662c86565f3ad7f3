"""Compare this system with recorded results of the published one.

    python tool/parity.py --golden DIR --mano DIR --checkpoint FILE --inputs FILE.npz --output DIR

DIR of --golden holds the recorded results, --what names the parts to compare:

    forward   forward_test.npz, and forward_mid.npz and tolerance.json if they exist. Needs --checkpoint, in the
              published layout, and --inputs, one array `images` (N, 3, H, W), float32 in [0, 1]
    loss      loss.json and loss_batch.npz, and loss_detail.npz and tolerance.json if they exist. Needs --checkpoint
    datasets  datasets/index.json and datasets/{set}.npz, of the datasets in data/. Needs neither:
              python tool/parity.py --what datasets --golden DIR --mano DIR --output DIR
    metrics   datasets/metrics.json of the predictions in datasets/{set}_pred.npz, of the datasets in data/. Likewise

Results are written to --output under the recorded files' own names and keys. Prints the worst error of each tensor
beside its tolerance; exits 1 if one is outside.

It checks an installation, a device (--gpu), a library version or a refactoring. --amp bf16 shows what mixed precision
changes. On a GPU convolutions run in full float32, without TF32.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from common.devices import parse_devices
from common.errors import UserError
from common.options import Parser, names_from
from common.precision import AMP_DTYPES
from tool.published import datasets, forward, loss, metrics
from tool.published.comparison import Report

RECORDED_THREADS = 2  # of the recorded results; one thread adds in another order, and some sums differ too much


class Part(NamedTuple):
    run: Callable[[argparse.Namespace], list[Report]]
    files: tuple[str, ...]  # what the folder of recorded results must hold
    options: tuple[str, ...] = ()


PARTS = {
    "forward": Part(forward.run, ("forward_test.npz",), ("checkpoint", "inputs")),
    "loss": Part(loss.run, ("loss.json", "loss_batch.npz"), ("checkpoint",)),
    "datasets": Part(datasets.run, ("datasets/index.json", "data")),
    "metrics": Part(metrics.run, ("datasets/metrics.json", "datasets/index.json", "data")),
}


def main() -> int:
    args = parse_args()
    parts = choose_parts(args)
    args.device = parse_devices(args.gpu)[0]
    torch.set_num_threads(RECORDED_THREADS)
    # cuDNN's default for float32 convolutions, TF32, keeps 10 bits of the mantissa: that is not what is compared here.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        reports = [report for part in parts for report in PARTS[part].run(args)]
    width = max(len(report.name) for report in reports)
    print(f"{'':{width}}  worst error  relative  tolerance")
    for report in reports:
        flag = "  OUTSIDE" if report.outside else ""
        print(f"{report.name:{width}}  {report.error:11.2e}  {report.relative:8.1e}  {report.tolerance:9.1e}{flag}")
    outside = sum(report.outside for report in reports)
    print(f"{len(reports)} compared, {outside} outside their tolerance; results in {args.output}")
    return 1 if outside else 0


def choose_parts(args: argparse.Namespace) -> list[str]:
    """The parts to compare: those of --what, or those the folder has results for.

    Raises:
        UserError: a part lacks results or options.
    """
    missing = {name: [f for f in part.files if not (args.golden / f).exists()] for name, part in PARTS.items()}
    chosen = args.what or [name for name in PARTS if not missing[name]]
    if not chosen:
        first = ", ".join(part.files[0] for part in PARTS.values())
        raise UserError(f"{args.golden} holds no recorded results, none of {first}")
    for name, files in missing.items():
        if files and name in chosen:
            raise UserError(f"the part `{name}` needs {' and '.join(files)} in {args.golden}")
        if files and not args.what:
            print(f"not compared: {name} ({args.golden} has no {' and no '.join(files)})")
    for name in chosen:
        if absent := [f"--{option}" for option in PARTS[name].options if getattr(args, option) is None]:
            raise UserError(f"the part `{name}` needs {' and '.join(absent)}; --what names the parts to compare")
    return chosen


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__, {"--out": "--output", "--snapshot": "--checkpoint"})
    parser.add_argument("--golden", type=Path, required=True, help="folder of recorded results")
    parser.add_argument("--mano", type=Path, required=True, help="folder of the MANO files used for the recording")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint used for the recording")
    parser.add_argument("--inputs", type=Path, help=".npz file with `images` (N, 3, H, W)")
    parser.add_argument(
        "--what",
        type=names_from(PARTS),
        help=f"parts to compare, of {', '.join(PARTS)} (default: those that --golden has results for)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--gpu", default="cpu", help="a GPU's number, or cpu (default: cpu)")
    parser.add_argument(
        "--amp",
        type=lambda text: "none" if text == "off" else text,  # its former name
        choices=tuple(AMP_DTYPES),
        default="none",
        help="mixed precision (default: none)",
    )
    return parser.parse_args()
