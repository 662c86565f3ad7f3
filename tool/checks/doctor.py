"""Check the hand model, the checkpoint and the datasets: what is there, what is missing or wrong, and what to do.

    python tool/doctor.py
    python tool/doctor.py --sets InterHand26M,HIC --sample 1000
    python tool/doctor.py --data /big/data --full --json report.json
    python tool/doctor.py --checkpoint FILE --remember    # later runs warn if the file is another

Verdicts: complete; usable (works, with a remark); incomplete (something is missing or wrong, training or testing would
stop there); missing (nothing is there). Each dataset is opened as training and testing open it, which builds its
annotation cache. A sample of the images is read, the same one every time. All other files are looked for, and the
images too unless they are very many; --full looks for every image, and compares the cache with its checksums.

Exit code: 0 all that was found is usable; 1 something is wrong, or missing in a set which is partly there or was named,
or there is nothing at all; 2 the command itself is wrong.
"""

import argparse
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError, some
from common.nets.mano_files import WHERE_TO_GET, read_hand_models
from common.options import (
    CHECKPOINT,
    CHECKPOINT_URL,
    DATA_FOLDER,
    MANO_FOLDER,
    MANO_HELP,
    OUTPUT_FOLDER,
    UNTRAINED,
    Parser,
    count,
    names_from,
    shown,
)
from common.utils.files import write_json
from common.utils.images import quiet_opencv
from common.weights import REMEMBERED, file_sha256, remember, remembered
from data import layouts
from main.build import load_model
from tool.checks.datasets import NAMED, Options, Report, check_magnitude, check_split, span

SNAPSHOT_FROM = (
    f"get the published checkpoint, {CHECKPOINT_URL}, as {shown(CHECKPOINT)}, or try with an untrained one, "
    f"{shown(UNTRAINED)}: python tool/make_checkpoint.py"
)


# ---- the command ----


def main() -> int:
    args = parse_args()
    if not args.data.is_dir():
        raise UserError(f"--data {args.data}: there is no such folder")
    quiet_opencv()
    options = Options(args.sample, args.full)
    reports = [check_mano(args.mano or MANO_FOLDER)]
    reports += check_checkpoints(args.checkpoint or demo_checkpoint(), args.remember)
    for name in args.sets or layouts.DATASETS:
        reports += [check_split(args.data, name, split, options) for split in layouts.DATASETS[name].splits]
    named = {*(args.sets or ()), *(["MANO"] if args.mano else ()), *(["checkpoint"] if args.checkpoint else ())}
    code = exit_code(reports, named)
    print_reports(reports, args.data)
    if args.json:
        items = [{**asdict(report), "verdict": report.verdict} for report in reports]
        write_json(args.json, {"exit_code": code, "data": str(args.data), "reports": items})
    return code


def exit_code(reports: Sequence[Report], named: Collection[str]) -> int:
    """See the head of this file. `named`: on the command line."""
    present = {report.name for report in reports if report.found}
    bad = {report.name for report in reports if report.verdict in ("incomplete", "missing")}
    return int(not present or not bad.isdisjoint(present | set(named)))


def print_reports(reports: Sequence[Report], data: Path) -> None:
    if not any(report.found for report in reports):
        places = {"data": data, "mano": shown(MANO_FOLDER), "demo": shown(CHECKPOINT), "checkpoint": CHECKPOINT_URL}
        print(OVERVIEW.format(**places, **{name: info.how_to_get for name, info in layouts.DATASETS.items()}))
        return
    print(f"data: {data}\n")
    present = {report.name for report in reports if report.found}
    for report in reports:
        name = f"{report.name} {report.split}".strip()
        if report.name in layouts.DATASETS and report.name not in present:  # one line instead of one for each split
            if report.split != layouts.DATASETS[report.name].splits[0]:
                continue
            name, report = report.name, replace(report, advice=layouts.DATASETS[report.name].how_to_get)
        print(f"{name:20} {report.verdict:10}  {'; '.join(report.facts)}".rstrip())
        for text in report.problems:
            print(f"    WRONG  {text}")
        for text in report.remarks:
            print(f"    note   {text}")
        if report.advice and report.verdict != "complete":
            print(f"    to do  {report.advice}")
    counts = Counter(report.verdict for report in reports)
    print("\n" + ", ".join(f"{counts[name]} {name}" for name in ("complete", "usable", "incomplete", "missing")))
    print(f"works now: {', '.join(what_works(reports)) or 'nothing yet'}")


def what_works(reports: Sequence[Report]) -> list[str]:
    """What the project's commands can do with what is usable."""
    usable = [(report.name, report.split) for report in reports if report.verdict in ("complete", "usable")]
    if ("MANO", "") not in usable:
        return []
    trained = any(name == "checkpoint" for name, _ in usable)
    train = [name for name, split in usable if split == "train"]
    test = [name for name, split in usable if split in ("test", "val") and trained]
    lists = {"train on": train, "test on": test}
    return ["demo"] * trained + [f"{what} {', '.join(names)}" for what, names in lists.items() if names]


OVERVIEW = """Nothing is here yet.

To try everything without a download, with a generated hand and made-up images:
    python tool/make_standin_hand.py && python tool/make_checkpoint.py --init random && python tool/make_toy_data.py

For the real thing, in this order:

 1. The MANO hand model, needed by everything. 'Models & Code' from https://mano.is.tue.mpg.de (free, after
    registration): MANO_RIGHT.pkl and MANO_LEFT.pkl into {mano}.
 2. A trained network, for the demo and for testing: {checkpoint} as
    {demo}. With these two the demo runs.
 3. Datasets, for testing and training, into {data}. The quickest to get comes first:
    HIC (test): {HIC}
    MSCOCO (train, val): {MSCOCO}
    InterHand26M (train, test): {InterHand26M}
    ReInterHand (train, test): {ReInterHand}

Run this again at any time: it says what is still missing, and what is wrong."""


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    files, processing, results = parser.standard_groups()
    files.add_argument(
        "--checkpoint", type=Path, help=f"the network (default: {shown(CHECKPOINT)}, or {shown(UNTRAINED)})"
    )
    files.add_argument("--mano", type=Path, help=MANO_HELP)
    files.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the datasets (default: data)")
    files.add_argument(
        "--sets",
        type=names_from(layouts.DATASETS),
        help=f"datasets to check, of {','.join(layouts.DATASETS)} (default: all)",
    )
    processing.add_argument("--sample", type=count, default=200, help="images per split to read (default: %(default)s)")
    processing.add_argument("--full", action="store_true", help="look for every image, not for a sample")
    results.add_argument("--remember", action="store_true", help="keep the checkpoints' sha256, to warn if they change")
    results.add_argument("--json", type=Path, help="also write the report to this file")
    return parser.parse_args()


# ---- hand model and checkpoint ----


def check_mano(folder: Path) -> Report:
    report = Report("MANO")
    places = (folder, folder / "mano")
    report.found = any((place / f"MANO_{side}.pkl").exists() for place in places for side in ("RIGHT", "LEFT"))
    if not report.found:
        report.advice = WHERE_TO_GET
        return report
    try:
        right, left = read_hand_models(folder)
    except UserError as error:
        report.problem(str(error).removesuffix(". " + WHERE_TO_GET), WHERE_TO_GET)
        return report
    for side, hand in (("right", right), ("left", left)):
        check_magnitude(report, f"v_template of the {side} hand", [span(hand.v_template)], 0.05, 0.5)
    report.facts.append(f"{folder}: both hands")
    if right.name != "MANO":
        report.remarks.append(f"{right.name}: to try things; results need the files of https://mano.is.tue.mpg.de")
    return report


def demo_checkpoint() -> Path:
    """The checkpoint that the demo uses, or the untrained one where there is no other."""
    return UNTRAINED if UNTRAINED.exists() and not CHECKPOINT.exists() else CHECKPOINT


def check_checkpoints(path: Path, keep: bool = False) -> list[Report]:
    """The demo's checkpoint, and the latest of an own training if there is one. `keep`: remember their sums."""
    dumps = sorted((OUTPUT_FOLDER / "model_dump").glob("snapshot_*.pth"), key=lambda dump: dump.stat().st_mtime)
    named = {path: "", **({dumps[-1]: "of your training"} if dumps else {})}
    if keep:
        remember(path for path in named if path.is_file())
    return [check_checkpoint(path, which) for path, which in named.items()]


def check_checkpoint(path: Path, which: str) -> Report:
    report = Report("checkpoint", which, found=path.exists(), advice=SNAPSHOT_FROM)
    if not report.found:
        return report
    with tqdm(desc=f"reading {path.name}", total=1, leave=False, disable=None):
        try:
            loaded = load_model(path, mano=None)
        except UserError as error:
            report.problem(str(error))
            return report
        network = loaded.model.state_dict()
        broken = [name for name, value in network.items() if not value.isfinite().all()]
    if broken:
        report.problem(f"{path}: {some(sorted(broken), NAMED)} holds NaN or infinite numbers")
    numbers = sum(value.numel() for value in network.values())
    sha256, known, config = file_sha256(path), remembered().get(str(path.resolve())), loaded.config
    if known not in (None, sha256):
        report.remarks.append(f"not the file it was: {REMEMBERED} has sha256 {known}; --remember if that is meant")
    if loaded.note:
        report.remarks.append(loaded.note)
    unused = f" (not used: {some(sorted(loaded.ignored), NAMED)})" if loaded.ignored else ""
    report.facts += [
        f"{path}: epoch {loaded.epoch}, {numbers / 1e6:.1f} M numbers, {path.stat().st_size / 1e6:.1f} MB",
        f"all keys fit the network{unused}",
        f"backbones {config.body_backbone}, {config.hand_backbone}, {config.trans_backbone}",
        f"sha256 {sha256} (compare it with your source's; --remember tells later runs to warn if it changes)",
    ]
    return report
