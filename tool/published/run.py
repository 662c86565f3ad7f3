"""Compare this system with recorded figures of the published one.

    python tool/parity.py --golden DIR --mano DIR --snapshot FILE --inputs FILE.npz --out DIR

DIR of --golden holds the recorded figures, --what names the parts to compare:

    forward   forward_test.npz, and forward_mid.npz and tolerance.json if there are any. Needs --snapshot, in the
              published layout, and --inputs, one array `images` (N, 3, H, W), float32 in [0, 1]
    loss      loss.json and loss_batch.npz, and loss_detail.npz and tolerance.json if there are any. Needs --snapshot
    datasets  datasets/index.json and datasets/{set}.npz, of the datasets in data/. Needs neither:
              python tool/parity.py --what datasets --golden DIR --mano DIR --out DIR
    metrics   datasets/metrics.json of the predictions in datasets/{set}_pred.npz, of the datasets in data/. Likewise

Results are written to --out under the recorded files' own names and keys. Prints the worst error of each tensor beside
its tolerance; exits 1 if one is outside.

It checks an installation, a device (--gpu), a library version or a refactoring. --amp bf16 shows what mixed precision
changes.
"""

import argparse
from pathlib import Path

from common.errors import UserError

PARTS = ("forward", "loss", "datasets", "metrics")
RECORDED = {  # what a folder must hold for a part
    "forward": ("forward_test.npz",),
    "loss": ("loss.json", "loss_batch.npz"),
    "datasets": ("datasets/index.json", "data"),
    "metrics": ("datasets/metrics.json", "datasets/index.json", "data"),
}
NEEDS = {"forward": ("snapshot", "inputs"), "loss": ("snapshot",), "datasets": (), "metrics": ()}


def main() -> int:
    args = parse_args()
    parts = choose_parts(args)
    from tool.published import datasets as parity_datasets
    from tool.published import forward as parity_forward
    from tool.published import loss as parity_loss
    from tool.published import metrics as parity_metrics

    modules = {"forward": parity_forward, "loss": parity_loss, "datasets": parity_datasets, "metrics": parity_metrics}
    reports = [report for part in parts for report in modules[part].run(args)]
    width = max(len(report.name) for report in reports)
    print(f"{'':{width}}  worst error  relative  tolerance")
    for report in reports:
        flag = "  OUTSIDE" if report.outside else ""
        print(f"{report.name:{width}}  {report.error:11.2e}  {report.relative:8.1e}  {report.tolerance:9.1e}{flag}")
    outside = sum(report.outside for report in reports)
    print(f"{len(reports)} compared, {outside} outside their tolerance; results in {args.out}")
    return 1 if outside else 0


def choose_parts(args: argparse.Namespace) -> list[str]:
    """The parts to compare, in order: those named, or those the folder has figures for.

    Raises:
        UserError: there is no such part, or it lacks figures or arguments.
    """
    missing = {part: [name for name in RECORDED[part] if not (args.golden / name).exists()] for part in PARTS}
    if args.what:
        named = args.what.split(",")
        unknown = [part for part in named if part not in PARTS]
        if unknown:
            raise UserError(f"--what {','.join(unknown)}: there is no such part; there are: {', '.join(PARTS)}")
        parts = [part for part in PARTS if part in named]
        for part in parts:
            if missing[part]:
                raise UserError(f"the part `{part}` needs {' and '.join(missing[part])} in {args.golden}")
    else:
        parts = [part for part in PARTS if not missing[part]]
        if not parts:
            first = ", ".join(names[0] for names in RECORDED.values())
            raise UserError(f"{args.golden} holds no recorded figures, none of {first}")
        for part in PARTS:
            if missing[part]:
                print(f"not compared: {part} ({args.golden} has no {' and no '.join(missing[part])})")
    for part in parts:
        absent = [f"--{name}" for name in NEEDS[part] if getattr(args, name) is None]
        if absent:
            raise UserError(f"the part `{part}` needs {' and '.join(absent)}; --what names the parts to compare")
    return parts


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder of recorded figures")
    parser.add_argument("--mano", type=Path, required=True, help="folder of the MANO files the figures were made with")
    parser.add_argument("--snapshot", type=Path, help="checkpoint the figures were made with")
    parser.add_argument("--inputs", type=Path, help=".npz with `images` (N, 3, H, W)")
    parser.add_argument("--what", help=f"of {','.join(PARTS)} (default: all that DIR has figures for)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--gpu", default="cpu", help="a GPU's number, or cpu (default)")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision (default: off)")
    return parser.parse_args()
