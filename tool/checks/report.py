"""What the checks of tool/doctor.py share: the report, and what is looked for in files, numbers and pictures."""

import gc
import math
import os
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec
import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.utils.images import load_image
from data import layouts
from data.reading import UNREADABLE, explain, path_in, read_file, read_json

T = TypeVar("T")

NAMED = 3  # examples in a message
UNCHANGED = "use the official files unchanged"


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


def open_report(root: Path, split: str, evidence: Iterable[str]) -> Report:
    """A dataset's report; found if one of `evidence` (paths below root) exists."""
    report = Report(root.name, split, found=any((root / path).exists() for path in evidence))
    report.toy = (root / layouts.TOY_MARK).exists()
    if not report.found:
        report.advice = layouts.DATASETS[root.name].how_to_get
    elif report.toy:
        report.remarks.append("toy data: to try things; figures measured on it mean nothing")
    return report


def pick(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of them, the same ones every time."""
    return list(items) if len(items) <= count else random.Random(0).sample(items, count)


def name_some(names: Collection[str]) -> str:
    """The first few in order, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(sorted(names)[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def names_in(folder: Path) -> set[str]:
    """Names in a folder, none if it is not there. Listing is cheap where asking for each file is not."""
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError):
        return set()


# ---- Files ----


def read(report: Report, path: Path, type: type[T], root: Path) -> T | None:
    """A JSON file, or None and a problem that names the file, relative to `root`, and the place in it."""
    name = path.relative_to(root)
    if not path.exists():
        report.problem(f"{name} is missing", layouts.DATASETS[report.name].how_to_get)
        return None
    with tqdm(total=1, desc=f"reading {path.name} ({path.stat().st_size / 1e6:.0f} MB)", leave=False, disable=None):
        gc.disable()  # it would look through the millions of new objects again and again, in vain
        try:
            return read_json(path, type)
        except UserError as error:
            text = place_of(path, type, str(error).removeprefix(f"{path}: "))
            report.problem(f"{name}: {text}", f"get {name} again, or repair it at that place")
            return None
        finally:
            gc.enable()


def place_of(path: Path, type: Any, text: str) -> str:
    """The reader's message with the place made plain: the end, the characters, or the keys."""
    if "truncated" in text:
        return f"cut short: it ends after {path.stat().st_size:,} bytes in the middle of the data"
    if match := re.search(r"\(byte (\d+)\)", text):
        at = int(match[1])
        return f"{text}, near {read_file(path)[max(0, at - 30) : at + 20].decode('utf-8', 'replace')!r}"
    return locate(read_file(path), type, "$") or text if "[...]" in text else text


def locate(data: bytes | msgspec.Raw, type: Any, place: str) -> str:
    """The first value in nested dictionaries that is not of its type, by its keys. Empty if there is none."""
    try:
        if get_origin(type) is dict:
            items = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).items()
            found = (locate(raw, get_args(type)[1], f"{place}.{key}") for key, raw in items)
            return next(filter(None, found), "")
        msgspec.json.decode(data, type=type)
    except UNREADABLE as error:
        return at_place(error, place)
    return ""


def at_place(error: Exception, place: str) -> str:
    """A decoder's message about a part of a file, whose place in it is `place`."""
    text = explain(error)
    return text.replace("at $", f"at {place}") if "at $" in text else f"{text} - at {place}"


def entries(report: Report, path: Path, raws: Sequence[msgspec.Raw], type: type[T], what: str) -> Iterator[T]:
    """The entries of a list in a file; how many are not of their type is a problem, and the first of them."""
    broken, decode = [], msgspec.json.Decoder(type).decode
    for index, raw in enumerate(tqdm(raws, desc=what, delay=1, leave=False, disable=None)):
        try:
            yield decode(raw)
        except UNREADABLE as error:
            broken.append(at_place(error, f"$.{what}[{index}]"))
    if broken:
        report.problem(f"{path.name}: {len(broken):,} {what} cannot be used: {broken[0]}", UNCHANGED)


# ---- Numbers and names ----


def check_magnitude(report: Report, what: str, values: Sequence[float], unit: str, low: float, high: float) -> None:
    """A problem if the median of values is outside what is plausible, with the guess of a mistaken unit."""
    values = sorted(value for value in values if math.isfinite(value))
    if not values or low <= (median := values[len(values) // 2]) <= high:
        return
    other, factor = {"mm": ("metres", 1000), "m": ("millimetres", 0.001)}.get(unit, ("", 0))
    guess = f"; they look like {other}, {unit} is expected" if low <= median * factor <= high and other else ""
    report.problem(
        f"{what}: typically {median:.3g} {unit}, plausible is {low:g} to {high:g}{guess}",
        f"{UNCHANGED}; their units are converted while reading",
    )


def check_rotations(report: Report, what: str, rotations: Sequence[Sequence[Sequence[float]]]) -> None:
    bad = sum(not is_rotation(rotation) for rotation in rotations)
    if bad:
        report.problem(f"{what}: {bad} of {len(rotations)} matrices are no rotations", UNCHANGED)


def is_rotation(rows: Sequence[Sequence[float]]) -> bool:
    if [len(row) for row in rows] != [3] * 3:
        return False
    R = np.array(rows, np.float64)
    return bool(np.abs(R @ R.T - np.eye(3)).max() <= 0.01 and np.linalg.det(R) > 0)


def span(points: Any) -> float:
    """Largest extent along an axis of (N, 3) points; NaN if there are none."""
    points = np.asarray(points, np.float64)
    return float(np.ptp(points, axis=0).max()) if len(points) else math.nan


def check_names(report: Report, names: Iterable[str], what: str) -> None:
    """Paths in annotation files must stay in their folder."""
    bad = [name for name in names if "\0" in name or leads_out(name)]
    if bad:
        report.problem(f"{len(bad)} {what} lead out of the dataset's folder, e.g. {bad[0]!r}", "do not use this file")


def leads_out(name: str) -> bool:
    try:
        path_in(Path(), name)
    except UserError:
        return True
    return False


def check_ids(report: Report, image_ids: Sequence[int], label_ids: Sequence[int], used: Sequence[int]) -> None:
    """Ids occur once, and `used`, the images that annotations name, are there."""
    for ids, what in ((image_ids, "image"), (label_ids, "annotation")):
        if twice := len(ids) - len(set(ids)):
            report.problem(f"{twice:,} {what} ids occur more than once", UNCHANGED)
    known = set(image_ids)
    if orphans := sum(image_id not in known for image_id in used):
        report.problem(f"{orphans:,} annotations refer to an image that is not in the file", UNCHANGED)


# ---- Pictures ----


def look_at_images(
    report: Report, items: Sequence[tuple[Path, tuple[int, int] | None]], options: Options, advice: str
) -> None:
    """Decode a sample of images.

    Args:
        items: path and annotated (width, height) if known.
        advice: for missing ones.
    """
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
        if size not in (None, (width, height)):
            other_size.append(f"{path} is {width} x {height}, annotated as {size[0]} x {size[1]}")
    of = f"of {len(sample):,} images" if len(sample) == len(items) else f"of {len(sample):,} sampled images"
    again = "get these images again"
    kinds = (
        (missing, "are missing", advice),
        (damaged, "cannot be read", again),
        (other_size, "have another size", again),
    )
    for bad, what, to_do in kinds:
        if bad:
            report.problem(f"{len(bad):,} {of} {what}, e.g. {bad[0]}", to_do)
    report.counts |= {"images_sampled": len(sample), "missing_in_sample": len(missing), "unreadable": len(damaged)}
    if sample and not (missing or damaged):
        report.facts.append(f"{'all' if len(sample) == len(items) else f'a sample of {len(sample):,}'} images decode")


def find_images(report: Report, folder: Path, names: Iterable[str], advice: str) -> None:
    """Look for every image, by listing the folders they are in."""
    by_folder: dict[str, set[str]] = {}
    for name in names:
        head, _, tail = name.rpartition("/")
        by_folder.setdefault(head, set()).add(tail)
    folders = tqdm(by_folder.items(), desc=f"{report.name} {report.split}: folders", leave=False, disable=None)
    lost = Counter({head: len(tails - names_in(folder / head)) for head, tails in folders})
    total, missing = sum(map(len, by_folder.values())), lost.total()
    report.counts["images_missing"] = missing
    if missing:
        where = ", ".join(f"{head or '.'} ({count:,})" for head, count in lost.most_common(NAMED) if count)
        report.problem(f"{missing:,} of {total:,} images are missing; most in {where}", advice)
