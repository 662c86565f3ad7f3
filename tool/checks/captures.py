"""tool/doctor.py on ReInterHand: captures, each a folder with its cameras, pictures and fits."""

import math
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from data import layouts
from data.reading import HandParams, matrix
from data.ReInterHand.ReInterHand import MIN_VISIBLE, CameraFile, read_frame_list
from tool.checks.report import (
    NAMED,
    Options,
    Report,
    check_magnitude,
    check_rotations,
    look_at_images,
    name_some,
    names_in,
    open_report,
    pick,
    read,
    span,
)


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
        report.remarks.append(f"not an official name, taken for a capture of this split: {name_some(strange)}")
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
    frames: list[str] = []
    try:
        frames = [f"{frame:06d}" for frame in read_frame_list(folder / "frame_list.txt")]
    except UserError as error:
        one.problem(str(error), command + "`")
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


def _check_mugsy(report: Report, folder: Path, mode: str, frames: list[str], advice: str) -> list[Path]:
    """Images that are there. A frame lacks images if other cameras, or the frame list, have it."""
    cameras = read(report, folder / "Mugsy_cameras" / "cam_params.json", dict[str, CameraFile], folder)
    base = folder / mode / "images"
    listed = {camera: names_in(base / camera) for camera in sorted({*names_in(base), *(cameras or ())})}
    listed = {camera: {name[:-4] for name in names if name.endswith(".png")} for camera, names in listed.items()}
    expected = set(frames) if "segment" in mode else set().union(*listed.values())
    if cameras is not None:
        if strange := [camera for camera in listed if camera not in cameras]:
            report.problem(f"{mode}: cameras without parameters: {name_some(strange)}", advice)
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
    used = {frame for frame in frames if ratios.get(frame, 0) >= MIN_VISIBLE}
    for what, have in (("images", names), ("cam_params", params)):
        if lost := used - have:
            text = f"{mode}/{what}: {len(lost):,} of {len(used):,} frames are missing, e.g. {min(lost)}"
            report.problem(text, advice)
    files = [folder / mode / "cam_params" / f"{name}.json" for name in pick(sorted(used & params), 20)]
    cameras = [read(report, file, CameraFile, folder) for file in files]
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
            spans += [span(points[:21])] if points else []
        for frame in pick(fitted, options.sample):
            fit = read(report, folder / "mano_fits" / "params" / f"{int(frame)}_{side}.json", HandParams, folder)
            sizes += [math.hypot(*fit.trans)] if fit else []
    if used and not mano_names:
        report.problem("mano_fits/params is missing", f"{command} --parts mano_fits`")
    check_magnitude(report, "size of a hand by orig_fits", spans, "mm", 30, 500)
    check_magnitude(report, "trans in mano_fits", sizes, "m", 0, 20)
