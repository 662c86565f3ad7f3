"""Look at the hand model, the checkpoint and the datasets: what is there, what is missing, what is wrong, what to do.

    python tool/doctor.py
    python tool/doctor.py --sets InterHand26M,HIC --sample 1000
    python tool/doctor.py --data /big/data --full --json report.json

Verdicts: complete; usable (works, with a remark); incomplete (something is missing or wrong, training or testing would
stop there); missing (nothing is there). Annotation files are read whole; of the images, a sample is looked for and
decoded, the same one every time. --full looks for every image.

Exit code: 0 all that was found is usable; 1 something is wrong, or missing in a set which is partly there or was asked
for by name, or there is nothing at all; 2 the command itself is wrong.
"""

import argparse
import gc
import math
import os
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
from tqdm import tqdm  # noqa: E402

from common.errors import UserError, run_main  # noqa: E402
from common.options import MANO_FOLDER  # noqa: E402
from data import layouts  # noqa: E402
from data.reading import HandParams, explain, matrix, read_file, read_json, read_mesh, vector  # noqa: E402

T = TypeVar("T")

VERTEX_COUNT = 778
NAMED = 3  # examples in a message
SNAPSHOT_FROM = (
    "get the published snapshot_6.pth (linked in the README of https://github.com/facebookresearch/InterWild) into "
    "demo, or try with an untrained one: python tool/make_checkpoint.py"
)


@dataclass
class Report:
    """What was found of one thing: a split of a dataset, the hand model, a checkpoint.

    Attributes:
        found: whether any of it is there; toy: whether it is made up.
        facts: plain; remarks: worth knowing, nothing stops there; problems: something stops there.
        advice: what to do, one line.
        counts: the numbers behind the facts.
    """

    name: str
    split: str = ""
    found: bool = False
    toy: bool = False
    facts: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    advice: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if not self.found:
            return "missing"
        return "incomplete" if self.problems else "usable" if self.remarks else "complete"

    def problem(self, text: str, advice: str = "") -> None:
        """The first advice stays: it belongs to what has to be mended first."""
        self.problems.append(text)
        if self.toy:
            advice = f"make the toy data anew: python tool/make_toy_data.py --sets {self.name}"
        self.advice = self.advice or advice


@dataclass(frozen=True)
class Options:
    """sample: images a split that are decoded; full: look for every image."""

    sample: int
    full: bool


# ---- the official files, as far as the doctor looks into them ----


class InterHandImage(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int
    capture: int
    camera: str
    frame_idx: int


class InterHandLabel(msgspec.Struct, gc=False):
    id: int
    image_id: int
    joint_valid: msgspec.Raw
    hand_type: str


class InterHandData(msgspec.Struct):
    images: list[InterHandImage]
    annotations: list[InterHandLabel]


class InterHandCameras(msgspec.Struct):
    campos: dict[str, vector(3)]
    camrot: dict[str, matrix(3, 3)]
    focal: dict[str, vector(2)]
    princpt: dict[str, vector(2)]


class InterHandJoints(msgspec.Struct, gc=False):
    world_coord: matrix(42, 3)
    joint_valid: Annotated[
        list[Annotated[list[bool | int], msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=42, max_length=42)
    ]


class TwoFits(msgspec.Struct, gc=False):
    right: HandParams | None
    left: HandParams | None


class CocoImage(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class CocoPerson(msgspec.Struct, gc=False):
    id: int
    image_id: int
    iscrowd: int
    num_keypoints: int
    bbox: vector(4)
    lefthand_valid: bool
    righthand_valid: bool
    lefthand_kpts: msgspec.Raw
    righthand_kpts: msgspec.Raw


class CocoData(msgspec.Struct):
    images: list[CocoImage]
    annotations: list[CocoPerson]


class CocoCamera(msgspec.Struct):
    focal: vector(2)
    princpt: vector(2)


class CocoFit(msgspec.Struct):
    mano_param: HandParams
    cam_param: CocoCamera


class CocoFits(msgspec.Struct):
    right: CocoFit | None
    left: CocoFit | None


class HicImage(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class HicLabel(msgspec.Struct):
    id: int
    image_id: int
    hand_type: str
    right_mano_path: str | None
    left_mano_path: str | None


class HicData(msgspec.Struct):
    images: list[HicImage]
    annotations: list[HicLabel]


class CaptureCamera(msgspec.Struct):
    R: matrix(3, 3)
    t: vector(3)
    focal: vector(2)
    princpt: vector(2)


class EgoCamera(CaptureCamera):
    D: vector(4)


# ---- the command ----


def main() -> int:
    args = parse_args()
    sets = list(layouts.DATASETS) if args.sets is None else [name.strip() for name in args.sets.split(",")]
    unknown = [name for name in sets if name not in layouts.DATASETS]
    if unknown:
        raise UserError(f"--sets {','.join(unknown)}: choose from {', '.join(layouts.DATASETS)}")
    if not args.data.is_dir():
        raise UserError(f"--data {args.data}: there is no such folder")
    from common.utils.images import quiet_opencv

    quiet_opencv()
    options = Options(args.sample, args.full)
    reports = [check_mano(args.mano or MANO_FOLDER)]
    reports += check_checkpoints(args.checkpoint or ROOT / "demo" / "snapshot_6.pth")
    for name in sets:
        reports += [CHECKS[name](args.data / name, split, options) for split in layouts.DATASETS[name].splits]
    asked = set(sets if args.sets else ()) | ({"MANO"} if args.mano else set())
    asked |= {"checkpoint"} if args.checkpoint else set()
    code = exit_code(reports, asked)
    print_reports(reports, args.data)
    if args.json:
        from common.utils.files import write_json

        items = [{**asdict(report), "verdict": report.verdict} for report in reports]
        write_json(args.json, {"exit_code": code, "data": str(args.data), "reports": items})
    return code


def exit_code(reports: Sequence[Report], asked: Collection[str]) -> int:
    """See the head of this file. `asked`: names of what was asked for by name."""
    partly_there = {report.name for report in reports if report.found}
    if not partly_there:
        return 1
    expected = partly_there | set(asked)
    return int(any(report.verdict in ("incomplete", "missing") for report in reports if report.name in expected))


def print_reports(reports: Sequence[Report], data: Path) -> None:
    if not any(report.found for report in reports):
        print(OVERVIEW.format(data=data, **{name: info.how_to_get for name, info in layouts.DATASETS.items()}))
        return
    print(f"data: {data}\n")
    for report in merged(reports):
        print(
            f"{(report.name + ' ' + report.split).strip():20} {report.verdict:10}  {'; '.join(report.facts)}".rstrip()
        )
        for mark, texts in (("WRONG", report.problems), ("note ", report.remarks)):
            for text in texts:
                print(f"    {mark}  {text}")
        if report.advice and report.verdict != "complete":
            print(f"    to do  {report.advice}")
    counts = Counter(report.verdict for report in reports)
    print("\n" + ", ".join(f"{counts[name]} {name}" for name in ("complete", "usable", "incomplete", "missing")))
    print(f"works now: {', '.join(what_works(reports)) or 'nothing yet'}")


def merged(reports: Sequence[Report]) -> list[Report]:
    """One report for a dataset of which nothing is there, instead of one for each split."""
    found = {report.name for report in reports if report.found}
    lines: list[Report] = []
    for report in reports:
        if report.name in found or report.name not in layouts.DATASETS:
            lines.append(report)
        elif not any(line.name == report.name for line in lines):
            lines.append(Report(report.name, advice=layouts.DATASETS[report.name].how_to_get))
    return lines


def what_works(reports: Sequence[Report]) -> list[str]:
    """What the project's commands can do with what is usable."""
    usable = {(report.name, report.split) for report in reports if report.verdict in ("complete", "usable")}
    if ("MANO", "") not in usable:
        return []
    has_checkpoint = any(name == "checkpoint" for name, _ in usable)
    works = ["demo"] if has_checkpoint else []
    for word, splits, possible in (("train on", ("train",), True), ("test on", ("test", "val"), has_checkpoint)):
        names = [report.name for report in reports if (report.name, report.split) in usable and report.split in splits]
        works += [f"{word} {', '.join(names)}"] if names and possible else []
    return works


OVERVIEW = """Nothing is here yet.

To try everything without a download, with a generated hand and made-up pictures:
    python tool/make_standin_hand.py && python tool/make_checkpoint.py && python tool/make_toy_data.py

For the real thing, in this order:

 1. The MANO hand model, needed by everything. 'Models & Code' from https://mano.is.tue.mpg.de (free, after
    registration): MANO_RIGHT.pkl and MANO_LEFT.pkl into common/utils/human_model_files/mano.
 2. A trained network, for the demo and for testing: snapshot_6.pth into demo (linked in the README of
    https://github.com/facebookresearch/InterWild). With these two the demo runs.
 3. Datasets, for testing and training, into {data}. The quickest to get comes first:
    HIC (test): {HIC}
    MSCOCO (train, val): {MSCOCO}
    InterHand26M (train, test): {InterHand26M}
    ReInterHand (train, test): {ReInterHand}

Run this again at any time: it says what is still missing, and what is wrong."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the datasets (default: data)")
    parser.add_argument("--mano", type=Path, help="folder of the MANO files")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint (default: demo/snapshot_6.pth)")
    parser.add_argument("--sets", help=f"comma-separated: {', '.join(layouts.DATASETS)} (default: all)")
    parser.add_argument("--sample", type=_positive, default=200, help="images a split to decode (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="look for every image, not for a sample")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


# ---- hand model and checkpoint ----


def check_mano(folder: Path) -> Report:
    from common.utils.mano_files import WHERE_TO_GET, read_hand_models

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
        check_magnitude(report, f"v_template of the {side} hand", [_span(hand.v_template)], "m", 0.05, 0.5)
    report.facts.append(f"{folder}: both hands")
    if right.name != "MANO":
        report.remarks.append(f"{right.name}: to try things; figures need the files of https://mano.is.tue.mpg.de")
    return report


def check_checkpoints(path: Path) -> list[Report]:
    """The demo's checkpoint, and the latest of a training of one's own if there is any."""
    dumps = sorted((ROOT / "output" / "model_dump").glob("snapshot_*.pth"), key=lambda dump: dump.stat().st_mtime)
    reports = [check_checkpoint(path, "")]
    return reports + [check_checkpoint(dumps[-1], "of your training")] if dumps else reports


def check_checkpoint(path: Path, which: str) -> Report:
    report = Report("checkpoint", which, found=path.exists(), advice=SNAPSHOT_FROM)
    if not report.found:
        return report
    with tqdm(desc=f"reading {path.name}", total=1, leave=False, disable=None):
        import torch

        from common.checkpoint import load_network, read_checkpoint
        from main.config import Config, config_from_dict
        from main.model import build_model

        try:
            content = read_checkpoint(path)
            config = config_from_dict(content["config"]) if "config" in content else Config()
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing is copied: only whether it fits is asked
                load_network(build_model(config, mano=None), content["network"], path)
        except UserError as error:
            report.problem(str(error))
            return report
        except (KeyError, TypeError, AttributeError) as error:
            report.problem(f"{path}: its config is not of this version ({error})")
            return report
        broken = [name for name, value in content["network"].items() if not torch.isfinite(value).all()]
    if broken:
        report.problem(f"{path}: {_named(broken)} holds NaN or infinite numbers")
    numbers = sum(value.numel() for value in content["network"].values())
    report.facts.append(f"{path}: epoch {content.get('epoch')}, {numbers / 1e6:.1f} M numbers, fits the network")
    return report


# ---- what all datasets share ----


def open_report(root: Path, split: str, evidence: Iterable[str]) -> Report:
    """A dataset's report; found if one of `evidence` (paths below root) exists."""
    info = layouts.DATASETS[root.name]
    report = Report(root.name, split, found=any((root / path).exists() for path in evidence))
    report.toy = (root / layouts.TOY_MARK).exists()
    if not report.found:
        report.advice = info.how_to_get
    elif report.toy:
        report.remarks.append("toy data: to try things; figures measured on it mean nothing")
    return report


def read(report: Report, path: Path, type: type[T], relative_to: Path) -> T | None:
    """A JSON file, or None and a problem that names file and place."""
    name = path.relative_to(relative_to)
    if not path.exists():
        report.problem(f"{name} is missing", layouts.DATASETS[report.name].how_to_get)
        return None
    with tqdm(total=1, desc=f"reading {path.name} ({path.stat().st_size / 1e6:.0f} MB)", leave=False, disable=None):
        gc.disable()  # it would look through the millions of new objects again and again, in vain
        try:
            return read_json(path, type)
        except UserError as error:
            text = str(error).removeprefix(f"{path}: ")
            report.problem(f"{name}: {place_of(path, type, text)}", f"get {name} again, or repair it at that place")
            return None
        finally:
            gc.enable()


def place_of(path: Path, type: Any, text: str) -> str:
    """The reader's message with the place made plain: the end, the characters, or the keys."""
    if "truncated" in text:
        return f"cut short: it ends after {path.stat().st_size:,} bytes in the middle of the data"
    if match := re.search(r"\(byte (\d+)\)", text):
        return f"{text}, near {excerpt(read_file(path), int(match[1]))}"
    if "[...]" in text:
        return locate(read_file(path), type, "$") or text
    return text


def excerpt(data: bytes, at: int) -> str:
    return repr(data[max(0, at - 30) : at + 20].decode("utf-8", "replace"))


def locate(data: bytes, type: Any, place: str) -> str:
    """The first value in nested dictionaries that is not of its type, by its keys. Empty if there is none."""
    try:
        if get_origin(type) is dict:
            inner = get_args(type)[1]
            found = (
                locate(bytes(raw), inner, f"{place}.{key}")
                for key, raw in msgspec.json.decode(data, type=dict[str, msgspec.Raw]).items()
            )
            return next(filter(None, found), "")
        msgspec.json.decode(data, type=type)
    except msgspec.ValidationError as error:
        return (
            explain(error).replace("at $", f"at {place}") if "at `$" in str(error) else f"{explain(error)} - at {place}"
        )
    except msgspec.DecodeError as error:
        match = re.search(r"\(byte (\d+)\)", str(error))
        return f"{explain(error)} - at {place}" + (f", near {excerpt(data, int(match[1]))}" if match else "")
    return ""


def check_magnitude(report: Report, what: str, values: Sequence[float], unit: str, low: float, high: float) -> None:
    """A problem if the median of values is outside what is plausible, with the guess of a mistaken unit."""
    values = sorted(value for value in values if math.isfinite(value))
    if not values or low <= (median := values[len(values) // 2]) <= high:
        return
    guess = ""
    other = {"mm": ("metres", 1000), "m": ("millimetres", 0.001)}.get(unit)
    if other and low <= median * other[1] <= high:
        guess = f"; they look like {other[0]}, {'mm' if unit == 'mm' else 'm'} is expected"
    report.problem(
        f"{what}: typically {median:.3g} {unit}, plausible is {low:g} to {high:g}{guess}",
        "use the official files unchanged; their units are converted while reading",
    )


def check_rotations(report: Report, what: str, rotations: Sequence[Sequence[Sequence[float]]]) -> None:
    import numpy as np

    R = np.array(rotations, np.float64).reshape(-1, 3, 3)
    error = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) + (np.linalg.det(R) < 0)
    if bad := int((error > 0.01).sum()):
        report.problem(f"{what}: {bad} of {len(R)} matrices are no rotations", "use the official files unchanged")


def check_names(report: Report, names: Iterable[str], what: str) -> None:
    """Paths in annotation files must stay in their folder."""
    bad = [name for name in names if name.startswith("/") or ".." in name.split("/") or "\0" in name]
    if bad:
        report.problem(f"{len(bad)} {what} lead out of the dataset's folder, e.g. {bad[0]!r}", "do not use this file")


def check_duplicates(report: Report, ids: Sequence[int], what: str) -> None:
    twice = len(ids) - len(set(ids))
    if twice:
        report.problem(f"{twice:,} {what} ids occur more than once", "use the official files unchanged")


def pick(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of them, the same ones every time."""
    return list(items) if len(items) <= count else random.Random(0).sample(items, count)


def names_in(folder: Path) -> set[str]:
    """Names in a folder, none if it is not there. Listing is cheap where asking for each file is not."""
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError):
        return set()


def look_at_images(
    report: Report, items: Sequence[tuple[Path, tuple[int, int] | None]], options: Options, advice: str
) -> None:
    """Decode a sample of images.

    Args:
        items: path and annotated (width, height) if known.
        advice: for missing ones.
    """
    from common.utils.images import load_image

    sample = pick(items, options.sample)
    missing, damaged, other_size = [], [], []
    for path, size in tqdm(sample, desc=f"{report.name} {report.split}: images", leave=False, disable=None):
        if not path.exists():
            missing.append(path)
            continue
        try:
            height, width = load_image(path).shape[:2]
        except UserError as error:
            damaged.append(error)
            continue
        if size is not None and size != (width, height):
            other_size.append(f"{path} is {width} x {height}, annotated as {size[0]} x {size[1]}")
    of = f"of {len(sample):,} images" if len(sample) == len(items) else f"of {len(sample):,} sampled images"
    for bad, text in (
        (missing, f"{len(missing):,} {of} are missing, e.g. {missing[:1] and missing[0]}"),
        (damaged, f"{len(damaged):,} {of} cannot be read, e.g. {damaged[:1] and damaged[0]}"),
        (other_size, f"{len(other_size):,} {of} have another size, e.g. {other_size[:1] and other_size[0]}"),
    ):
        if bad:
            report.problem(text, advice if bad is missing else "get these images again")
    report.counts |= {"images_sampled": len(sample), "missing_in_sample": len(missing), "unreadable": len(damaged)}
    if sample and not (missing or damaged):
        report.facts.append(f"{'all' if len(sample) == len(items) else f'a sample of {len(sample):,}'} images decode")


def find_images(report: Report, folder: Path, names: Iterable[str], advice: str) -> None:
    """Look for every image, by listing the folders they are in."""
    by_folder: dict[str, set[str]] = {}
    for name in names:
        head, _, tail = name.rpartition("/")
        by_folder.setdefault(head, set()).add(tail)
    missing: list[str] = []
    for head, tails in tqdm(
        by_folder.items(), desc=f"{report.name} {report.split}: folders", leave=False, disable=None
    ):
        missing += [f"{head}/{tail}".lstrip("/") for tail in sorted(tails - names_in(folder / head))]
    total = sum(map(len, by_folder.values()))
    report.counts["images_missing"] = len(missing)
    if missing:
        where = Counter(name.rpartition("/")[0] for name in missing).most_common(NAMED)
        folders = ", ".join(f"{head or '.'} ({count:,})" for head, count in where)
        report.problem(f"{len(missing):,} of {total:,} images are missing; most in {folders}", advice)


def _named(names: Collection[str]) -> str:
    names = sorted(names)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _span(points: Any) -> float:
    """Largest extent along an axis."""
    import numpy as np

    points = np.asarray(points, np.float64)
    return float((points.max(0) - points.min(0)).max()) if len(points) else math.nan


def _fits(pairs: Iterable[TwoFits]) -> Iterator[HandParams]:
    return (fit for pair in pairs for fit in (pair.right, pair.left) if fit is not None)


# ---- InterHand26M ----


def check_interhand(root: Path, split: str, options: Options) -> Report:
    names = [name.format(split=split) for name in layouts.INTERHAND_JSONS]
    folder = root / layouts.INTERHAND_IMAGES.format(split=split)
    report = open_report(root, split, [*names, layouts.INTERHAND_IMAGES.format(split=split)])
    if not report.found:
        return report
    types = (
        InterHandData,
        dict[str, InterHandCameras],
        dict[str, dict[str, InterHandJoints]],
        dict[str, dict[str, TwoFits]],
    )
    data, cameras, joints, manos = (
        read(report, root / name, type, root) for name, type in zip(names, types, strict=True)
    )
    if cameras is not None:
        _check_interhand_cameras(report, cameras)
    if joints is not None:
        spans = [
            _span(
                [
                    point
                    for point, flag in zip(frame.world_coord[hand], frame.joint_valid[hand], strict=False)
                    if flag[0]
                ]
            )
            for frame in pick([frame for frames in joints.values() for frame in frames.values()], 500)
            for hand in (slice(0, 21), slice(21, 42))
            if any(flag[0] for flag in frame.joint_valid[hand])
        ]
        check_magnitude(report, "size of a hand by world_coord in joint_3d", spans, "mm", 30, 500)
    if manos is not None:
        sizes = [math.hypot(*fit.trans) for fit in _fits(pair for frames in manos.values() for pair in frames.values())]
        check_magnitude(report, "trans of the MANO fits", sizes, "m", 0, 20)
    if data is not None:
        _check_interhand_labels(report, data, cameras, joints, manos)
        if split == "test":
            _check_test_ids(report, root, [label.id for label in data.annotations])
        _check_interhand_images(report, folder, data, options)
    return report


def _check_interhand_cameras(report: Report, cameras: dict[str, InterHandCameras]) -> None:
    positions = [math.hypot(*position) for capture in cameras.values() for position in capture.campos.values()]
    check_magnitude(report, "distance of the cameras (campos)", positions, "mm", 100, 20000)
    check_rotations(report, "camrot", [R for capture in cameras.values() for R in capture.camrot.values()])
    focals = [focal[0] for capture in cameras.values() for focal in capture.focal.values()]
    check_magnitude(report, "focal length", focals, "px", 50, 20000)


def _check_interhand_labels(
    report: Report,
    data: InterHandData,
    cameras: dict[str, InterHandCameras] | None,
    joints: dict[str, dict[str, InterHandJoints]] | None,
    manos: dict[str, dict[str, TwoFits]] | None,
) -> None:
    """Counts, and whether what annotations refer to exists."""
    images = {image.id: image for image in data.images}
    kinds = Counter(label.hand_type for label in data.annotations)
    count = len(data.annotations)
    report.counts |= {"images": len(images), "annotations": count, **kinds}
    report.facts.append(
        f"{len(images):,} images, {count:,} annotations ({', '.join(f'{n:,} {k}' for k, n in kinds.items())})"
    )
    check_duplicates(report, [label.id for label in data.annotations], "annotation")
    again = "use files of one release: these do not fit together"
    if strange := set(kinds) - {"right", "left", "interacting"}:
        report.problem(f"hand_type {_named(strange)} is unknown", again)
    used = [images[label.image_id] for label in data.annotations if label.image_id in images]
    if orphans := count - len(used):
        report.problem(f"{orphans:,} annotations refer to an image that is not in the file", again)
    for label in pick(data.annotations, 1000):
        flags = len(re.findall(rb"true|false|\d+", bytes(label.joint_valid)))
        if flags != 42:
            report.problem(f"annotation {label.id}: joint_valid holds {flags} numbers, not 42", again)
            break
    seen_cameras = {(str(image.capture), image.camera) for image in used}
    seen_frames = {(str(image.capture), str(image.frame_idx)) for image in used}
    if cameras is not None:
        lost = [f"{c}/{cam}" for c, cam in seen_cameras if c not in cameras or cam not in cameras[c].campos]
        if lost:
            report.problem(f"{len(lost):,} cameras have no parameters (capture/camera): {_named(lost)}", again)
    if joints is not None and (lost := [f"{c}/{f}" for c, f in seen_frames if f not in joints.get(c, {})]):
        report.problem(f"{len(lost):,} frames have no 3D joints (capture/frame): {_named(lost)}", again)
    if manos is not None and (lost := [f"{c}/{f}" for c, f in seen_frames if f not in manos.get(c, {})]):
        report.remarks.append(f"{len(lost):,} of {len(seen_frames):,} frames have no MANO fit: {_named(lost)}")
    if report.split == "train" and not report.toy and count < 0.95 * layouts.INTERHAND_TRAIN_COUNT:
        report.remarks.append(
            f"a part of the set: the official split has about {layouts.INTERHAND_TRAIN_COUNT:,} annotations"
        )


def _check_test_ids(report: Report, root: Path, ids: Sequence[int]) -> None:
    path = root / layouts.INTERHAND_TEST_IDS
    if path.exists():
        try:
            wanted = {int(line) for line in read_file(path).split()}
        except (UserError, ValueError) as error:
            report.problem(f"{path.name}: {error}", "it should hold one annotation id a line")
            return
    else:
        wanted = set(layouts.TEST_ID_RANGE) - layouts.TEST_IDS_LEFT_OUT
    absent = wanted.difference(ids)
    report.counts |= {"test_ids": len(wanted), "test_ids_absent": len(absent)}
    origin = path.name if path.exists() else "the published human-annotated list"
    if not absent:
        report.facts.append(f"all {len(wanted):,} ids of {origin}")
    elif len(absent) == len(wanted) and not path.exists():
        report.remarks.append(
            "no id of the published human-annotated test list is in it: "
            f"test with the subset 'all', or list ids in {path}"
        )
    else:
        report.problem(
            f"{len(absent):,} of {len(wanted):,} ids of {origin} have no annotation, e.g. {min(absent)}",
            f"get the whole annotation file, or list the ids to test in {path}",
        )


def _check_interhand_images(report: Report, folder: Path, data: InterHandData, options: Options) -> None:
    names = {image.file_name: (image.width, image.height) for image in data.images}
    check_names(report, names, "image names")
    advice = f"unpack the missing images into {folder} ({layouts.DATASETS[report.name].homepage})"
    if not folder.is_dir():
        report.problem(f"{folder} is missing", advice)
        return
    if options.full:
        find_images(report, folder, names, advice)
    sequences = Counter("/".join(name.split("/", 2)[:2]) for name in names if name.count("/") > 1)
    lost = [sequence for sequence in sequences if not (folder / sequence).is_dir()]
    if lost:
        images = sum(sequences[sequence] for sequence in lost)
        report.problem(
            f"{len(lost):,} of {len(sequences):,} sequence folders are missing ({images:,} images): {_named(lost)}",
            advice,
        )
    look_at_images(report, [(folder / name, size) for name, size in names.items()], options, advice)


# ---- MSCOCO ----


def check_coco(root: Path, split: str, options: Options) -> Report:
    name = layouts.COCO_JSON.format(split=split)
    image_folder = layouts.COCO_IMAGES.format(split=split)
    report = open_report(root, split, [name, image_folder])
    if not report.found:
        return report
    data = read(report, root / name, CocoData, root)
    if data is not None:
        _check_coco_people(report, data)
    if split == "train":
        _check_coco_fits(report, root, data)
    advice = f"unpack {layouts.COCO_DOWNLOADS[split]} into {root / 'images'}"
    if not (root / image_folder).is_dir():
        report.problem(f"{image_folder} is missing", advice)
    elif data is not None:
        check_names(report, (image.file_name for image in data.images), "image names")
        used = {person.image_id for person in data.annotations}
        images = [image for image in data.images if image.id in used]
        find_images(report, root / image_folder, [image.file_name for image in images], advice)
        there = names_in(root / image_folder)
        look_at_images(
            report,
            [(root / image_folder / i.file_name, (i.width, i.height)) for i in images if i.file_name in there],
            options,
            advice,
        )
    return report


def _check_coco_people(report: Report, data: CocoData) -> None:
    people = data.annotations
    usable = [p for p in people if not p.iscrowd and p.num_keypoints and (p.lefthand_valid or p.righthand_valid)]
    report.counts |= {"images": len(data.images), "annotations": len(people), "with_hands": len(usable)}
    report.facts.append(f"{len(data.images):,} images, {len(people):,} people, {len(usable):,} with a hand")
    check_duplicates(report, [person.id for person in people], "annotation")
    again = "use the official COCO-WholeBody files unchanged"
    known = {image.id for image in data.images}
    if orphans := sum(person.image_id not in known for person in people):
        report.problem(f"{orphans:,} annotations refer to an image that is not in the file", again)
    for person in pick(usable, 1000):
        try:
            for raw in (person.lefthand_kpts, person.righthand_kpts):
                msgspec.json.decode(raw, type=vector(63))
        except msgspec.DecodeError as error:
            report.problem(f"annotation {person.id}: hand keypoints: {explain(error)}", again)
            break
    official = layouts.COCO_IMAGE_COUNTS[report.split]
    if not report.toy and len(known) < 0.95 * official:
        report.remarks.append(f"a part of the set: the official split has {official:,} images")


def _check_coco_fits(report: Report, root: Path, data: CocoData | None) -> None:
    """The fits are many: all are read as JSON, a sample is looked into."""
    raws = read(report, root / layouts.COCO_MANO, dict[str, msgspec.Raw], root)
    if raws is None:
        return
    report.counts["mano_fits"] = len(raws)
    distances = []
    for key in pick(list(raws), 1000):
        if problem := locate(bytes(raws[key]), CocoFits, f"$.{key}"):
            report.problem(f"{layouts.COCO_MANO}: {problem}", f"get {layouts.COCO_MANO} again")
            break
        pair = msgspec.json.decode(raws[key], type=CocoFits)
        distances += [math.hypot(*fit.mano_param.trans) for fit in (pair.right, pair.left) if fit is not None]
    # Their cameras are virtual, so hands can seem far away.
    check_magnitude(report, "trans of the MANO fits", distances, "m", 0, 1000)
    if not raws:
        report.remarks.append("the file of MANO fits is empty: no hand has one")
    elif data is not None:
        ids = {str(person.id) for person in data.annotations}
        report.facts.append(f"{len(raws):,} with MANO fits")
        if strangers := sum(key not in ids for key in raws):
            report.remarks.append(f"{strangers:,} of {len(raws):,} MANO fits belong to no annotation")


# ---- HIC ----


def check_hic(root: Path, split: str, options: Options) -> Report:
    folder = (root / layouts.HIC_JSON).parent
    report = open_report(root, split, [layouts.HIC_JSON, f"data/{layouts.HIC_FITS}"])
    report.found |= any(name in layouts.HIC_SEQUENCES for name in names_in(folder))
    if not report.found:
        return report
    report.advice = ""
    if not (root / layouts.HIC_JSON).exists():
        report.problem(f"{layouts.HIC_JSON} is missing", f"put HIC.json into {folder}. {layouts.HIC_JSON_FROM}")
        return report
    data = read(report, root / layouts.HIC_JSON, HicData, root)
    if data is None:
        return report
    images = {image.id: image for image in data.images}
    labels = data.annotations
    report.counts |= {"images": len(images), "annotations": len(labels)}
    report.facts.append(f"{len(images):,} images, {len(labels):,} annotations")
    check_duplicates(report, [label.id for label in labels], "annotation")
    used = {label.image_id for label in labels}
    if orphans := sum(label.image_id not in images for label in labels):
        report.problem(f"{orphans:,} annotations refer to an image that is not in the file", "get HIC.json again")
    image_names = [image.file_name for image in data.images if image.id in used]
    meshes = [path for label in labels for path in (label.right_mano_path, label.left_mano_path) if path]
    check_names(report, [*image_names, *meshes], "paths")
    sequences = sorted({name.split("/")[0] for name in image_names if not (folder / name).exists()})
    known = [sequence for sequence in sequences if sequence in layouts.HIC_SEQUENCES]
    command = "python data/HIC/download.py" + (f" --sequences {','.join(known)}" if known else "")
    find_images(report, folder, image_names, f"run `{command}`")
    sizes = {image.file_name: (image.width, image.height) for image in data.images}
    look_at_images(report, [(folder / n, sizes[n]) for n in image_names if (folder / n).exists()], options, "")
    _check_meshes(report, folder, meshes, options)
    return report


def _check_meshes(report: Report, folder: Path, meshes: Sequence[str], options: Options) -> None:
    advice = "run `python data/HIC/download.py` (it gets the MANO fits too)"
    missing = [name for name in meshes if not (folder / name).exists()]
    report.counts |= {"meshes": len(meshes), "meshes_missing": len(missing)}
    if missing:
        report.problem(f"{len(missing):,} of {len(meshes):,} meshes are missing, e.g. {missing[0]}", advice)
    spans, damaged = [], []
    lost = set(missing)
    there = [name for name in meshes if name not in lost]
    for name in tqdm(pick(there, options.sample), desc="HIC: meshes", leave=False, disable=None):
        try:
            spans.append(_span(read_mesh(folder / name, VERTEX_COUNT)))
        except UserError as error:
            damaged.append(error)
    if damaged:
        report.problem(f"{len(damaged):,} meshes cannot be used, e.g. {damaged[0]}", advice)
    check_magnitude(report, "size of the meshes", spans, "m", 0.03, 0.5)


# ---- ReInterHand ----


def check_reinterhand(root: Path, split: str, options: Options) -> Report:
    wanted = layouts.TEST_CAPTURES if split == "test" else layouts.TRAIN_CAPTURES
    folders = sorted(path for path in (root / "data").glob("m--*") if path.is_dir())
    folders = [path for path in folders if layouts.is_test_capture(path.name) == (split == "test")]
    report = open_report(root, split, [f"data/{folder.name}" for folder in folders])
    names = {folder.name for folder in folders}
    lost = [short_name(capture) for capture in wanted if capture not in names]
    if not folders:
        report.advice = f"run `python data/ReInterHand/download.py --captures {split}`"
        return report
    if lost and not report.toy:
        count = len(wanted) - len(lost)
        report.remarks.append(f"{count} of the split's {len(wanted)} captures are there, not {', '.join(lost)}")
    if (strange := names - set(wanted)) and not report.toy:
        report.remarks.append(f"not an official name, taken for a capture of this split: {_named(strange)}")
    share = Options(math.ceil(options.sample / len(folders)), options.full)
    for folder in tqdm(folders, desc=f"ReInterHand {split}: captures", leave=False, disable=None):
        check_capture(report, folder, share)
    counts = report.counts
    report.facts.insert(0, f"{len(folders)} capture(s), {counts['images']:,} images from {counts['cameras']} cameras")
    if not report.problems:
        report.facts = report.facts[:1] + ["the sampled images decode"]
        if lost and not report.toy:
            report.advice = f"for the others run `python data/ReInterHand/download.py --captures {','.join(lost)}`"
    return report


def short_name(capture: str) -> str:
    """The piece of a capture's name that tells it from the others."""
    pieces = capture.split("--")
    return pieces[3] if len(pieces) > 3 else capture


def check_capture(report: Report, folder: Path, options: Options) -> None:
    """One capture; what is wrong with it is said with its name."""
    one = Report(report.name, report.split, found=True)
    short = short_name(folder.name)
    command = f"run `python data/ReInterHand/download.py --captures {short}"
    frames = _frame_list(one, folder, command + "`")
    used: set[str] = set()
    images: list[Path] = []
    modes = [mode for mode in layouts.IMAGE_MODES if (folder / mode).is_dir()]
    if layouts.DEFAULT_MODE not in modes:
        part = layouts.IMAGE_MODES[layouts.DEFAULT_MODE]
        text = f"it has no {layouts.DEFAULT_MODE}, which is what is read by default"
        if modes:
            one.remarks.append(f"{text}; it has {', '.join(modes)}")
        else:
            one.problem(f"{text}, nor any other images", f"{command} --parts {part}`")
    for mode in modes:
        again = f"{command} --parts {layouts.IMAGE_MODES[mode]}`"
        check = _check_mugsy if mode.startswith("Mugsy") else _check_ego
        found = check(one, folder, mode, frames, again)
        used |= {path.stem for path in found}
        images += found
    _check_capture_fits(one, folder, used, options, command)
    look_at_images(one, [(path, None) for path in images], options, command + "`")
    report.counts = dict(Counter(report.counts) + Counter(one.counts | {"images": len(images)}))
    report.counts.setdefault("images", 0)
    report.counts.setdefault("cameras", 0)
    report.remarks += [f"{short}: {text}" for text in one.remarks]
    for text in one.problems:
        report.problem(f"{short}: {text}", one.advice)


def _frame_list(report: Report, folder: Path, advice: str) -> list[str]:
    """Frames of frame_list.txt, six digits."""
    try:
        rows = read_file(folder / "frame_list.txt").decode().splitlines()
        return [f"{int(row.split()[1]):06d}" for row in rows if row.strip()]
    except UserError as error:
        report.problem(str(error), advice)
    except (ValueError, IndexError):
        report.problem("frame_list.txt should hold `segment frame` in each line", advice)
    return []


def _check_mugsy(report: Report, folder: Path, mode: str, frames: list[str], advice: str) -> list[Path]:
    """Images that are there. A frame lacks images if other cameras, or the frame list, have it."""
    cameras = read(report, folder / "Mugsy_cameras" / "cam_params.json", dict[str, CaptureCamera], folder)
    base = folder / mode / "images"
    listed = {camera: names_in(base / camera) for camera in sorted({*names_in(base), *(cameras or ())})}
    listed = {camera: {name[:-4] for name in names if name.endswith(".png")} for camera, names in listed.items()}
    expected = set(frames) if "segment" in mode else set().union(*listed.values())
    if cameras is not None:
        if strange := [camera for camera in listed if camera not in cameras]:
            report.problem(f"{mode}: cameras without parameters: {_named(strange)}", advice)
        check_magnitude(report, "t in cam_params.json", [math.hypot(*c.t) for c in cameras.values()], "mm", 50, 20000)
        check_rotations(report, "R in cam_params.json", [camera.R for camera in cameras.values()])
    lacking = {camera: len(expected - names) for camera, names in listed.items() if expected - names}
    if lacking:
        worst = sorted(lacking.items(), key=lambda item: -item[1])[:NAMED]
        cams = ", ".join(f"{camera} ({n:,} of {len(expected):,})" for camera, n in worst)
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        report.problem(f"{mode}: cameras with missing images: {cams}{more}", advice)
    if not expected:
        report.problem(f"{mode}: no images", advice)
    report.counts["cameras"] = max(report.counts.get("cameras", 0), len(listed))
    return [base / camera / f"{name}.png" for camera, names in listed.items() for name in sorted(names & expected)]


def _check_ego(report: Report, folder: Path, mode: str, frames: list[str], advice: str) -> list[Path]:
    ratios = read(report, folder / mode / "truncation_ratio.json", dict[str, float], folder)
    names = {name[:-4] for name in names_in(folder / mode / "images") if name.endswith(".png")}
    params = {name[:-5] for name in names_in(folder / mode / "cam_params") if name.endswith(".json")}
    if ratios is None:
        return []
    if unrated := set(frames) - set(ratios):
        report.problem(f"{mode}: {len(unrated):,} frames are not in truncation_ratio.json, e.g. {min(unrated)}", advice)
    used = {frame for frame in frames if ratios.get(frame, 0) >= 0.2}
    for what, have in (("images", names), ("cam_params", params)):
        if lost := used - have:
            report.problem(
                f"{mode}/{what}: {len(lost):,} of {len(used):,} frames are missing, e.g. {min(lost)}", advice
            )
    cameras = [
        read(report, folder / mode / "cam_params" / f"{name}.json", EgoCamera, folder)
        for name in pick(sorted(used & params), 20)
    ]
    places = [math.hypot(*camera.t) for camera in cameras if camera is not None]
    check_magnitude(report, f"t in {mode}/cam_params", places, "mm", 10, 20000)
    return [folder / mode / "images" / f"{name}.png" for name in sorted(used & names)]


def _check_capture_fits(report: Report, folder: Path, used: set[str], options: Options, command: str) -> None:
    """Keypoints and MANO fits of the frames that have images."""
    spans, sizes = [], []
    mano_names = names_in(folder / "mano_fits" / "params")
    for side in ("right", "left"):
        place = Path("orig_fits") / side / "Keypoints"
        have = names_in(folder / place)
        if lost := {frame for frame in used if f"keypoint-{frame}.json" not in have}:
            text = f"{place}: {len(lost):,} of {len(used):,} frames are missing, e.g. {min(lost)}"
            report.problem(text, f"{command} --parts orig_fits`")
        fitted = [frame for frame in sorted(used) if f"{int(frame)}_{side}.json" in mano_names] if mano_names else []
        if mano_names and len(fitted) < len(used):
            report.remarks.append(f"mano_fits: {len(used) - len(fitted):,} of {len(used):,} frames have no {side} hand")
        for frame in pick(sorted(used - lost), options.sample):
            points = read(report, folder / place / f"keypoint-{frame}.json", matrix(24, 3), folder)
            spans += [_span(points[:21])] if points else []
        for frame in pick(fitted, options.sample):
            fit = read(report, folder / "mano_fits" / "params" / f"{int(frame)}_{side}.json", HandParams, folder)
            sizes += [math.hypot(*fit.trans)] if fit else []
    if used and not mano_names:
        report.problem("mano_fits/params is missing", f"{command} --parts mano_fits`")
    check_magnitude(report, "size of a hand by orig_fits", spans, "mm", 30, 500)
    check_magnitude(report, "trans in mano_fits", sizes, "m", 0, 20)


CHECKS: dict[str, Callable[[Path, str, Options], Report]] = {
    "InterHand26M": check_interhand,
    "MSCOCO": check_coco,
    "HIC": check_hic,
    "ReInterHand": check_reinterhand,
}


if __name__ == "__main__":
    run_main(main)
