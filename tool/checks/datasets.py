"""tool/doctor.py on one split of a dataset: opened as training opens it, its files looked for, samples of it read."""

import math
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import replace
from tqdm import tqdm

from common.errors import UserError, some
from common.types import Annotation
from common.utils.augment import IDENTITY
from data import layouts
from data.dataset import HandDataset
from data.InterHand26M.InterHand26M import InterHand26M
from data.ReInterHand.ReInterHand import ReInterHand
from main.build import open_dataset
from main.config import Config

T = TypeVar("T")

NAMED = 3  # examples in a message
LOOKED_FOR = 300_000  # annotations; of a larger split only --full looks for every image
JOINTS = "size of a hand by its 3D joints (world_coord, orig_fits)"
UNCHANGED = "use the official files unchanged"
# Patterns of what is there if anything of a split is.
EVIDENCE = {
    "InterHand26M": ("annotations/{}/*.json", "images/{}"),
    "MSCOCO": ("annotations/*_{}_*.json", "images/{}2017"),
    "HIC": ("data/HIC.json", "data/IJCV16*", "data/[0-9][0-9]"),
    "ReInterHand": (),  # its captures
}
# Folder in a capture of ReInterHand -> the archive it comes from.
PARTS = {**layouts.IMAGE_MODES, "orig_fits": "orig_fits", "mano_fits": "mano_fits"}


@dataclass
class Report:
    """What was found of a split of a dataset, the hand model or a checkpoint.

    Attributes:
        found: any of it exists; toy: it is toy data.
        facts; remarks: worth knowing, not an error; problems: training or testing would stop.
        advice: what to do, one line.
        counts: the numbers in the facts.
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
        """The first advice is kept: it is for what has to be fixed first."""
        self.problems.append(text)
        if self.toy:
            advice = f"make the toy data again: python tool/make_toy_data.py --sets {self.name}"
        self.advice = self.advice or advice


@dataclass(frozen=True)
class Options:
    """sample: images of a split that are read; full: look for every image, and check the annotation cache."""

    sample: int
    full: bool


def check_split(data: Path, name: str, split: str, options: Options) -> Report:
    """A split of a dataset in the folder `data`."""
    root = data / name
    report = Report(name, split, toy=(root / layouts.TOY_MARK).exists(), advice=layouts.DATASETS[name].how_to_get)
    captures = [path.name for path in sorted((root / "data").glob("m--*"))] if name == "ReInterHand" else []
    captures = [capture for capture in captures if layouts.is_test_capture(capture) == (split == "test")]
    report.found = bool(captures) or any(any(root.glob(pattern.format(split))) for pattern in EVIDENCE[name])
    if not report.found:
        if name == "ReInterHand":
            report.advice = f"run `python data/ReInterHand/download.py --captures {split}`"
        return report
    report.advice = ""
    if report.toy:
        report.remarks.append("toy data: to try things; results measured on it mean nothing")
    # Every kind of ReInterHand images that exists; only errors in the first are problems.
    present = [mode for mode in layouts.IMAGE_MODES if any((root / "data" / c / mode).is_dir() for c in captures)]
    if present and layouts.DEFAULT_MODE not in present:
        report.remarks.append(f"no capture has {layouts.DEFAULT_MODE}, which is read by default; see --cam_mode")
    first, *others = sorted(present, key=lambda mode: (mode != layouts.DEFAULT_MODE, mode)) or [layouts.DEFAULT_MODE]
    _check_opened(report, data, first, options)
    for mode in others:
        other = Report(name, split, found=True)
        _check_opened(other, data, mode, options)
        report.remarks += [f"{mode}: {text}" for text in other.problems]
    if captures and not report.toy:
        _compare_captures(report, captures)
    return report


def _check_opened(report: Report, data: Path, mode: str, options: Options) -> None:
    """`mode`: of `layouts.IMAGE_MODES`; only ReInterHand has others than the default."""
    name, split = report.name, report.split
    cam_mode, envmap_mode = mode.split("/")
    config = replace(Config(), cam_mode=cam_mode, envmap_mode=envmap_mode)
    try:
        dataset = open_dataset(name, "test" if split == "val" else split, config, data)
        if options.full:
            dataset.source.check_cache()
    except UserError as error:
        with suppress(UserError):
            source = InterHand26M(data / name, split, "all") if name == "InterHand26M" else None
            if source is not None and not len(source):  # joints in metres: no hand is as large as a pixel
                hands = source.column("joints_world").reshape(-1, 21, 3)[:500]
                check_magnitude(report, JOINTS, [span(hand) for hand in hands], 0.03, 0.5)
        report.problem(str(error), _how_to_get(name, split, [str(error)]))
        return
    counts = dataset.source.counts()
    report.counts |= counts
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in counts.items() if kind != "annotations")
    report.facts.append(f"{counts['annotations']:,} annotations" + (f" ({kinds})" if kinds else ""))
    lacking = counts["annotations"] - counts.get("mano_fits", counts["annotations"])
    if lacking == counts["annotations"]:
        report.remarks.append("no annotation has a MANO fit")
    elif lacking and name == "InterHand26M":
        report.remarks.append(f"{lacking:,} annotations have no MANO fit")
    broken = dict(dataset.source.problems())
    if broken:
        report.problem(f"{len(broken):,} annotations cannot be used: {next(iter(broken.values()))}", UNCHANGED)
    if isinstance(dataset.source, ReInterHand):
        _compare_cameras(report, dataset.source)
    complete = options.full or len(dataset) <= LOOKED_FOR
    _find_files(report, dataset, broken, complete)
    _check_size(report, data)
    _check_plausible(report, _read_samples(report, dataset, broken, options.sample, complete))


def _find_files(report: Report, dataset: HandDataset, broken: Collection[int], complete: bool) -> None:
    """Look for the files of all annotations by listing their folders, or only for the folders of the images."""
    wanted: dict[str, dict[str, set[str]]] = {"images": defaultdict(set), "other files": defaultdict(set)}
    outside: list[str] = []
    for index in tqdm(range(len(dataset)), desc=f"{report.name} {report.split}: files", leave=False, disable=None):
        if index in broken:
            continue
        try:
            for place, path in enumerate(dataset.source.files(index)):
                folder, _, name = os.fspath(path).rpartition("/")
                wanted["other files" if place else "images"][folder].add(name)
        except UserError as error:
            outside.append(str(error))
    report.counts["images"] = sum(map(len, wanted["images"].values()))
    report.facts.insert(0, f"{report.counts['images']:,} images")
    if outside:
        report.problem(f"{len(outside):,} annotations name files outside the dataset's folder: {outside[0]}", UNCHANGED)
    for kind, folders in wanted.items():
        each = complete or kind == "other files"
        lost = {
            folder: names - names_in(folder) if each or not os.path.isdir(folder) else set()
            for folder, names in folders.items()
        }
        most = sorted((folder for folder in lost if lost[folder]), key=lambda folder: -len(lost[folder]))
        report.counts[f"{kind.split()[-1]}_missing"] = count = sum(map(len, lost.values()))
        if count:
            places = ", ".join(f"{folder} ({len(lost[folder]):,})" for folder in most[:NAMED])
            report.problem(
                f"{count:,} {kind} are missing, e.g. {most[0]}/{min(lost[most[0]])}; most in {places}",
                _how_to_get(report.name, report.split, [f"{folder}/" for folder in most]),
            )


def _read_samples(
    report: Report, dataset: HandDataset, broken: Collection[int], count: int, complete: bool
) -> list[Annotation]:
    """Make samples as training does, and report what is wrong with them; returns their annotations."""
    chosen = [index for index in pick(range(len(dataset)), count) if index not in broken]
    annotations: list[Annotation] = []
    absent: list[str] = []
    damaged: list[str] = []
    for index in tqdm(chosen, desc=f"{report.name} {report.split}: samples", leave=False, disable=None):
        files: list[Path] = []
        try:
            files = dataset.source.files(index)
            annotations.append(dataset.source.annotation(index))
            _ = dataset.sample(index, IDENTITY) if report.split == "train" else dataset[index]
        except UserError as error:
            (damaged if all(path.exists() for path in files) else absent).append(str(error))
    few = "sampled " if len(chosen) < len(dataset) else ""
    of = f"of {len(chosen):,} {few}images"
    for texts, problem in (
        (damaged, "or their annotations cannot be used"),
        ([] if complete else absent, "are missing"),
    ):
        if texts:
            advice = _how_to_get(report.name, report.split, texts)
            report.problem(f"{len(texts):,} {of} {problem}, e.g. {texts[0]}", advice)
    if exchanged := int(dataset.exchanged):
        report.remarks.append(
            f"{exchanged:,} {of} have their sides exchanged against their annotation, as some of the official "
            "InterHand2.6M have; they are read with the annotation's size"
        )
    report.counts |= {"images_sampled": len(chosen), "missing_in_sample": len(absent), "unreadable": len(damaged)}
    report.counts["exchanged_in_sample"] = exchanged
    if chosen and not (absent or damaged):
        report.facts.append(f"{'a sample of' if few else 'all'} {len(chosen):,} images decode")
    return annotations


def _check_plausible(report: Report, annotations: Sequence[Annotation]) -> None:
    """Sizes and distances with a mistaken unit, and cameras whose matrix is not a rotation."""
    turned = [c for a in annotations for c in a.cameras or () if c.rotation is not None and c.transl is not None]
    cameras = {tuple(np.ravel(camera.transl)): camera for camera in turned}
    bad = sum(not is_rotation(camera.rotation) for camera in cameras.values())
    if bad:
        report.problem(f"{bad} of {len(cameras)} sampled camera matrices (camrot, R) are not rotations", UNCHANGED)
    joints = [points for a in annotations for points in _valid(a.joints_cam, a.joints_valid)]
    meshes = [points for a in annotations for points in _valid(a.vertices_cam, a.vertices_valid)]
    transl = [vector for a in annotations for vector in _valid(a.mano_transl, a.mano_valid)]
    far = 1000 if report.name == "MSCOCO" else 20  # its cameras are virtual, so hands can seem far away
    check_magnitude(report, JOINTS, map(span, joints), 0.03, 0.5)
    check_magnitude(report, "size of the meshes", map(span, meshes), 0.03, 0.5)
    check_magnitude(report, "trans of the MANO fits", map(norm, transl), 0, far)
    check_magnitude(
        report, "distance of the cameras (campos, t)", map(norm, (c.transl for c in cameras.values())), 0.01, 20
    )
    check_magnitude(report, "focal length in px", (float(np.max(c.focal)) for c in cameras.values()), 50, 20000)


def _valid(values: np.ndarray | None, valid: np.ndarray | None) -> Iterator[np.ndarray]:
    """What is valid of (2, ...) values of the right and the left hand, whole hands or points of them."""
    if values is not None and valid is not None:
        for hand, known in zip(values, np.asarray(valid, bool), strict=True):
            if known.any():
                yield hand[known] if known.ndim else hand


def check_magnitude(report: Report, what: str, values: Iterable[float], low: float, high: float) -> None:
    """A problem if the median of values, in m, is not plausible, with the guess of a mistaken unit in the file."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered or low <= (median := ordered[len(ordered) // 2]) <= high:
        return
    guess = ""
    if median < low <= median * 1000:
        guess = "; they look like metres, mm is expected"
    elif low <= median / 1000 <= high:
        guess = "; they look like millimetres, m is expected"
    report.problem(f"{what}: typically {median:.3g}, plausible is {low:g} to {high:g}{guess}", UNCHANGED)


def is_rotation(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix @ matrix.T - np.eye(3)).max() <= 0.01 and np.linalg.det(matrix) > 0)


def norm(vector: Any) -> float:
    return float(np.linalg.norm(vector))


def span(points: np.ndarray) -> float:
    """Largest extent of (N, 3) points along an axis; NaN if there are none."""
    return float(np.ptp(points, axis=0).max()) if len(points) else math.nan


def _check_size(report: Report, data: Path) -> None:
    """A remark if a part of the official split is there."""
    found, official, what = 0, 0, "annotations"
    if (report.name, report.split) == ("InterHand26M", "train"):
        found, official = report.counts["annotations"], layouts.INTERHAND_TRAIN_COUNT
    elif report.name == "MSCOCO":
        folder = data / report.name / layouts.COCO_IMAGES.format(split=report.split)
        found, official, what = len(names_in(str(folder))), layouts.COCO_IMAGE_COUNTS[report.split], "images"
    if found < 0.95 * official and not report.toy:
        report.remarks.append(f"a part of the set: the official split has about {official:,} {what}")


def _compare_captures(report: Report, captures: Sequence[str]) -> None:
    official = layouts.TEST_CAPTURES if report.split == "test" else layouts.TRAIN_CAPTURES
    if lost := [short_name(capture) for capture in official if capture not in captures]:
        count = len(official) - len(lost)
        report.remarks.append(f"{count} of the split's {len(official)} captures are there, not {', '.join(lost)}")
        command = f"for the others run `python data/ReInterHand/download.py --captures {','.join(lost)}`"
        report.advice = report.advice or command
    if strange := sorted(set(captures) - set(official)):
        report.remarks.append(f"not an official name, taken for a capture of this split: {some(strange, NAMED)}")


def _compare_cameras(report: Report, source: ReInterHand) -> None:
    """A remark on cameras that lack images which others have: what is read is what is there."""
    frames: dict[str, set[int]] = {}
    for shot in source.shots:
        frames.setdefault(shot.capture, set()).update(shot.frames.tolist())
    lacking = {(s.capture, s.camera): len(frames[s.capture]) - len(s.frames) for s in source.shots}
    worst = sorted((item for item in lacking.items() if item[1]), key=lambda item: -item[1])
    if worst:
        texts = [f"{short_name(capture)} {camera} ({count:,})" for (capture, camera), count in worst]
        report.remarks.append(f"cameras with missing images, which are not used: {some(texts, NAMED)}")
        part = layouts.IMAGE_MODES[f"{source.cam_mode}/{source.envmap_mode}"]
        names = ",".join(sorted({short_name(capture) for (capture, _), _ in worst}))
        report.advice = f"run `python data/ReInterHand/download.py --captures {names} --parts {part}`"


def _how_to_get(name: str, split: str, texts: Sequence[str]) -> str:
    """What to download, by paths or messages that name the files."""
    sequences, captures, parts = set(), set(), set()
    for text in texts:
        sequences |= {sequence for sequence in layouts.HIC_SEQUENCES if f"/{sequence}/" in text}
        captures |= {short_name(capture) for capture in layouts.CAPTURES if capture in text}
        parts |= {part for folder, part in PARTS.items() if f"/{folder}/" in text}
    if name == "HIC" and sequences:
        return f"run `python data/HIC/download.py --sequences {','.join(sorted(sequences))}`"
    if name == "ReInterHand" and captures:
        wanted = f" --parts {','.join(sorted(parts))}" if parts else ""
        return f"run `python data/ReInterHand/download.py --captures {','.join(sorted(captures))}{wanted}`"
    if name == "MSCOCO" and not any(".json" in text for text in texts):
        return f"unpack {layouts.COCO_DOWNLOADS[split]} into data/MSCOCO/images; {layouts.DATASETS[name].how_to_get}"
    return layouts.DATASETS[name].how_to_get


def short_name(capture: str) -> str:
    """The piece of a capture's name that tells it from the others."""
    pieces = capture.split("--")
    return pieces[3] if len(pieces) > 3 else capture


def pick(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of them, the same ones every time."""
    return list(items) if len(items) <= count else random.Random(0).sample(items, count)


def names_in(folder: str) -> frozenset[str]:
    """Names in a folder, none if it is not there. Listing is cheap where asking for each file is not."""
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):
        return frozenset()
