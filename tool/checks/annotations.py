"""tool/doctor.py on the datasets with one list of images and one of annotations: InterHand26M, MSCOCO, HIC."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tqdm import tqdm

from common.errors import UserError
from data import layouts
from data.HIC import HIC
from data.InterHand26M import InterHand26M as interhand
from data.MSCOCO import MSCOCO as coco
from data.reading import read_mesh
from tool.checks.report import (
    Options,
    Report,
    check_ids,
    check_magnitude,
    check_names,
    check_rotations,
    entries,
    find_images,
    locate,
    look_at_images,
    name_some,
    names_in,
    open_report,
    pick,
    read,
    span,
)

# ---- InterHand26M ----

Frames = dict[str, dict[str, interhand.FrameJoints]]
Fits = dict[str, dict[str, interhand.FrameMano]]
Cameras = dict[str, interhand.CaptureCameras]
ONE_RELEASE = "use files of one release: these do not fit together"


def check_interhand(root: Path, split: str, options: Options) -> Report:
    files = [root / name.format(split=split) for name in layouts.INTERHAND_JSONS]
    folder = root / layouts.INTERHAND_IMAGES.format(split=split)
    report = open_report(root, split, [*map(str, files), str(folder)])
    if not report.found:
        return report
    types = (interhand.DataFile, Cameras, Frames, Fits)
    data, cameras, joints, manos = (read(report, path, type, root) for path, type in zip(files, types, strict=True))
    if cameras is not None:
        _check_interhand_cameras(report, cameras)
    if joints is not None:
        _check_interhand_joints(report, joints)
    if manos is not None:
        pairs = [pair for frames in manos.values() for pair in frames.values()]
        sizes = [math.hypot(*fit.trans) for pair in pairs for fit in (pair.right, pair.left) if fit is not None]
        check_magnitude(report, "trans of the MANO fits", sizes, "m", 0, 20)
    if data is not None:
        images = list(entries(report, files[0], data.images, interhand.Image, "images"))
        labels = list(entries(report, files[0], data.annotations, interhand.Label, "annotations"))
        _check_interhand_labels(report, images, labels)
        found = {image.id: image for image in images}
        used = [found[label.image_id] for label in labels if label.image_id in found]
        _check_interhand_references(report, used, cameras, joints, manos)
        if split == "test":
            _check_test_ids(report, root, [label.id for label in labels])
        _check_interhand_images(report, folder, images, options)
    return report


def _check_interhand_cameras(report: Report, cameras: Cameras) -> None:
    positions = [math.hypot(*position) for capture in cameras.values() for position in capture.campos.values()]
    check_magnitude(report, "distance of the cameras (campos)", positions, "mm", 100, 20000)
    check_rotations(report, "camrot", [R for capture in cameras.values() for R in capture.camrot.values()])
    focals = [max(focal, default=0) for capture in cameras.values() for focal in capture.focal.values()]
    check_magnitude(report, "focal length", focals, "px", 50, 20000)


def _check_interhand_joints(report: Report, joints: Frames) -> None:
    spans = []
    for frame in pick([frame for frames in joints.values() for frame in frames.values()], 500):
        try:
            flags = interhand.read_flags(frame.joint_valid)
        except ValueError as error:
            report.problem(f"joint_3d: {error}", ONE_RELEASE)
            break
        for hand in (range(21), range(21, 42)):
            spans.append(span([frame.world_coord[joint] for joint in hand if flags[joint]]))
    check_magnitude(report, "size of a hand by world_coord in joint_3d", spans, "mm", 30, 500)


def _check_interhand_labels(
    report: Report, images: Sequence[interhand.Image], labels: Sequence[interhand.Label]
) -> None:
    kinds, count = Counter(label.hand_type for label in labels), len(labels)
    report.counts |= {"images": len(images), "annotations": count, **kinds}
    shares = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    report.facts.append(f"{len(images):,} images, {count:,} annotations ({shares})")
    check_ids(report, [i.id for i in images], [label.id for label in labels], [label.image_id for label in labels])
    for label in pick(labels, 1000):
        try:
            interhand.read_flags(label.joint_valid)
        except ValueError as error:
            report.problem(f"annotation {label.id}: {error}", ONE_RELEASE)
            break
    if report.split == "train" and not report.toy and count < 0.95 * layouts.INTERHAND_TRAIN_COUNT:
        official = f"{layouts.INTERHAND_TRAIN_COUNT:,}"
        report.remarks.append(f"a part of the set: the official split has about {official} annotations")


def _check_interhand_references(
    report: Report, used: Sequence[interhand.Image], cameras: Cameras | None, joints: Frames | None, manos: Fits | None
) -> None:
    """Whether what annotations refer to, by their images, exists."""
    pairs = {(str(image.capture), image.camera) for image in used}
    frames = {(str(image.capture), str(image.frame_idx)) for image in used}

    def without(keys: set[tuple[str, str]], table: dict[str, dict] | None) -> list[str]:
        if table is None:
            return []  # that the file is missing or broken was said
        return [f"{capture}/{key}" for capture, key in keys if key not in table.get(capture, {})]

    whole = cameras and {capture: _whole_cameras(numbers) for capture, numbers in cameras.items()}
    if lost := without(pairs, whole):
        text = f"{len(lost):,} cameras have no parameters (capture/camera): {name_some(lost)}"
        report.problem(text, ONE_RELEASE)
    if lost := without(frames, joints):
        report.problem(f"{len(lost):,} frames have no 3D joints (capture/frame): {name_some(lost)}", ONE_RELEASE)
    if lost := without(frames, manos):
        report.remarks.append(f"{len(lost):,} of {len(frames):,} frames have no MANO fit: {name_some(lost)}")


def _whole_cameras(cameras: interhand.CaptureCameras) -> dict[str, bool]:
    """The names of those with all their numbers."""
    parts = ((cameras.campos, 3), (cameras.camrot, 3), (cameras.focal, 2), (cameras.princpt, 2))
    return {name: True for name in cameras.campos if all(len(part.get(name, ())) == size for part, size in parts)}


def _check_test_ids(report: Report, root: Path, ids: Sequence[int]) -> None:
    path = root / layouts.INTERHAND_TEST_IDS
    wanted, origin = set(layouts.TEST_ID_RANGE) - layouts.TEST_IDS_LEFT_OUT, "the published human-annotated list"
    if path.exists():
        try:
            wanted, origin = set(interhand.read_ids(path).tolist()), path.name
        except UserError as error:
            report.problem(f"{path.name}: {error}", "it should hold one annotation id a line")
            return
    absent = wanted.difference(ids)
    report.counts |= {"test_ids": len(wanted), "test_ids_absent": len(absent)}
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


def _check_interhand_images(report: Report, folder: Path, images: Sequence[interhand.Image], options: Options) -> None:
    names = {image.file_name: (image.width, image.height) for image in images}
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
        of, gone = f"{len(lost):,} of {len(sequences):,}", sum(sequences[sequence] for sequence in lost)
        report.problem(f"{of} sequence folders are missing ({gone:,} images): {name_some(lost)}", advice)
    look_at_images(report, [(folder / name, size) for name, size in names.items()], options, advice)


# ---- MSCOCO ----


def check_coco(root: Path, split: str, options: Options) -> Report:
    file, folder = root / layouts.COCO_JSON.format(split=split), root / layouts.COCO_IMAGES.format(split=split)
    report = open_report(root, split, [str(file), str(folder)])
    if not report.found:
        return report
    data, used = read(report, file, coco.DataFile, root), {}
    if data is not None:
        # Of each person only what is asked below: a hundred keypoints each would fill the memory.
        people = [
            (p.id, p.image_id, not p.iscrowd and p.num_keypoints > 0 and (p.lefthand_valid or p.righthand_valid))
            for p in entries(report, file, data.annotations, coco.Person, "annotations")
        ]
        used = {person: image_id for person, image_id, _ in people}
        hands = sum(bool(usable) for *_, usable in people)
        report.counts |= {"images": len(data.images), "annotations": len(people), "with_hands": hands}
        report.facts.append(f"{len(data.images):,} images, {len(people):,} people, {hands:,} with a hand")
        ids = [image.id for image in data.images]
        check_ids(report, ids, [person for person, *_ in people], [image_id for _, image_id, _ in people])
        official = layouts.COCO_IMAGE_COUNTS[split]
        if not report.toy and len(set(ids)) < 0.95 * official:
            report.remarks.append(f"a part of the set: the official split has {official:,} images")
    if split == "train":
        _check_coco_fits(report, root, data and used)
    advice = f"unpack {layouts.COCO_DOWNLOADS[split]} into {root / 'images'}"
    if not folder.is_dir():
        report.problem(f"{folder.relative_to(root)} is missing", advice)
    elif data is not None:
        shown = set(used.values())
        sizes = {image.file_name: (image.width, image.height) for image in data.images if image.id in shown}
        check_names(report, (image.file_name for image in data.images), "image names")
        find_images(report, folder, sizes, advice)
        there = names_in(folder)
        look_at_images(report, [(folder / n, size) for n, size in sizes.items() if n in there], options, advice)
    return report


def _check_coco_fits(report: Report, root: Path, people: dict[int, int] | None) -> None:
    """The fits are many: all are read as JSON, a sample is looked into. `people`: by id, None if not known."""
    raws = read(report, root / layouts.COCO_MANO, dict[str, msgspec.Raw], root)
    if raws is None:
        return
    report.counts["mano_fits"] = len(raws)
    distances = []
    for key in pick(list(raws), 1000):
        if problem := locate(raws[key], coco.Fits, f"$.{key}"):
            report.problem(f"{layouts.COCO_MANO}: {problem}", f"get {layouts.COCO_MANO} again")
            break
        pair = msgspec.json.decode(raws[key], type=coco.Fits)
        distances += [math.hypot(*fit.mano_param.trans) for fit in (pair.right, pair.left) if fit is not None]
    # Their cameras are virtual, so hands can seem far away.
    check_magnitude(report, "trans of the MANO fits", distances, "m", 0, 1000)
    if not raws:
        report.remarks.append("the file of MANO fits is empty: no hand has one")
    elif people is not None:
        report.facts.append(f"{len(raws):,} with MANO fits")
        ids = set(map(str, people))
        if strangers := sum(key not in ids for key in raws):
            report.remarks.append(f"{strangers:,} of {len(raws):,} MANO fits belong to no annotation")


# ---- HIC ----


def check_hic(root: Path, split: str, options: Options) -> Report:
    file = root / layouts.HIC_JSON
    folder = file.parent
    report = open_report(root, split, [layouts.HIC_JSON, f"data/{layouts.HIC_FITS}"])
    report.found |= any(name in layouts.HIC_SEQUENCES for name in names_in(folder))
    if not report.found:
        return report
    report.advice = ""
    if not file.exists():
        report.problem(f"{layouts.HIC_JSON} is missing", f"put HIC.json into {folder}. {layouts.HIC_JSON_FROM}")
        return report
    data = read(report, file, HIC.DataFile, root)
    if data is None:
        return report
    labels = list(entries(report, file, data.annotations, HIC.Label, "annotations"))
    used = {label.image_id for label in labels}
    report.counts |= {"images": len(data.images), "annotations": len(labels)}
    report.facts.append(f"{len(data.images):,} images, {len(labels):,} annotations")
    check_ids(report, [i.id for i in data.images], [label.id for label in labels], [label.image_id for label in labels])
    sizes = {image.file_name: (image.width, image.height) for image in data.images if image.id in used}
    meshes = [path for label in labels for path in (label.right_mano_path, label.left_mano_path) if path]
    check_names(report, [*sizes, *meshes], "paths")
    there = [name for name in sizes if (folder / name).exists()]
    lost = {name.split("/")[0] for name in sizes.keys() - set(there)} & set(layouts.HIC_SEQUENCES)
    command = "python data/HIC/download.py" + (f" --sequences {','.join(sorted(lost))}" if lost else "")
    find_images(report, folder, sizes, f"run `{command}`")
    look_at_images(report, [(folder / name, sizes[name]) for name in there], options, "")
    _check_meshes(report, folder, meshes, options)
    return report


def _check_meshes(report: Report, folder: Path, meshes: Sequence[str], options: Options) -> None:
    advice = "run `python data/HIC/download.py` (it gets the MANO fits too)"
    there = [name for name in meshes if (folder / name).exists()]
    missing = sorted(set(meshes) - set(there))
    report.counts |= {"meshes": len(meshes), "meshes_missing": len(missing)}
    if missing:
        report.problem(f"{len(missing):,} of {len(meshes):,} meshes are missing, e.g. {missing[0]}", advice)
    spans, damaged = [], []
    for name in tqdm(pick(there, options.sample), desc="HIC: meshes", leave=False, disable=None):
        try:
            spans.append(span(read_mesh(folder / name, HIC.VERTEX_COUNT)))
        except UserError as error:
            damaged.append(error)
    if damaged:
        report.problem(f"{len(damaged):,} meshes cannot be used, e.g. {damaged[0]}", advice)
    check_magnitude(report, "size of the meshes", spans, "m", 0.03, 0.5)
