"""The datasets part of `tool/parity.py`: every sample of the recorded datasets under the recorded names."""

import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from torch.utils.data import default_collate
from tqdm import tqdm

from common.errors import UserError
from common.nets.mano import TwoHandMano
from common.targets import body_box_of, build_images
from common.types import Annotation
from common.utils.augment import Augmentation
from common.utils.files import make_folder, write_json
from common.utils.joints import INTERHAND_JOINTS, JOINTS
from data.dataset import HandDataset, to_device
from data.reading import Vector3, read_json
from main.build import open_dataset
from main.config import Config
from tool.published.comparison import Report, compare, load_mano, load_npz, rotation_matrices
from tool.published.official import official_eval_sample, official_sample

# Absolute tolerances by the end of a field's name: heatmap cells, metres, radians, [0, 1].
TOLERANCE = {
    "joint_img": 2e-3, "mano_joint_img": 2e-3, "joint_cam": 2e-5, "mano_mesh_cam": 2e-5, "rel_trans": 2e-5,
    "mano_pose": 2e-4, "mano_shape": 1e-6, "bbox_center": 2e-3, "bbox_size": 2e-3, "bbox": 2e-3,
    "bb2img_trans": 2e-3, "img_grid": 1e-4, "img_mean": 1e-6, "img_std": 1e-6,
}  # fmt: skip
UINT8_TOLERANCE = 0.6 / 255 + 1e-4  # half a gray level times the largest recorded color factor, 1.2; and rounding
UINT8_CROPS = "inputs/img_grid of uint8 crops"
OTHER_TOLERANCE = 1e-6  # flags
MM_TOLERANCE = 2e-2  # datalist/joint_cam is in mm
RELATIVE = 1e-5
BORDER = 5e-3  # a point this near to the border may be inside or outside


class RecordedAugmentation(msgspec.Struct):
    scale: float
    rot: float
    color_scale: Vector3
    do_flip: bool


class RecordedSet(msgspec.Struct):
    len: int
    ids: list[int | list[str | int | None]]
    img_path: list[str] = []


class Index(msgspec.Struct):
    """Of index.json: what is recorded."""

    augs: dict[str, RecordedAugmentation]
    sets: dict[str, RecordedSet]


def run(args: Namespace) -> list[Report]:
    """Make every sample, write `datasets/{set}.npz` and `datasets/index.json`, compare. `args` of `tool/parity.py`."""
    index = read_json(args.golden / "datasets" / "index.json", Index)
    mano = load_mano(args)
    augmentations = {
        name: Augmentation(aug.scale, aug.rot, tuple(aug.color_scale), aug.do_flip) for name, aug in index.augs.items()
    }
    data, folder = args.golden / "data", args.output / "datasets"
    make_folder(folder)
    reports, written = [], {}
    with TemporaryDirectory() as cache:  # not among the recorded results, nor among ours
        for name, recorded in tqdm(index.sets.items(), desc="datasets", leave=False):
            dataset = open_recorded(name, data, Path(cache))
            order = list(map(plain_id, recorded.ids))
            ids = [plain_id(dataset.source.id(i)) for i in range(len(dataset))]
            indices = [ids.index(id) for id in order if id in ids]
            paths = [dataset.source.annotation(i).image_path.relative_to(data).as_posix() for i in indices]
            # Where the published order is that of the file system only the ids themselves are compared.
            same = sorted(ids, key=repr) == sorted(order, key=repr) if "ReInterHand" in name else ids == order
            equal = {"length and ids": same} | (
                {"image paths": paths == recorded.img_path} if recorded.img_path else {}
            )
            reports += compare(f"{name}: ", dict.fromkeys(equal, True), equal, lambda _, expected: 0.0)
            written[name] = {"len": len(dataset), "ids": order if same else ids, "img_path": paths}
            values = make_set(dataset, indices, augmentations, mano, args.device)
            np.savez(folder / f"{name}.npz", **values)
            expected = load_npz(args.golden / "datasets" / f"{name}.npz")
            reports += compare_set(f"{name}/", expected, values)
            if dataset.source.split == "train":
                crops = uint8_crops(dataset, indices, augmentations)
                grids = {UINT8_CROPS: np.concatenate([expected[f"{aug}/inputs/img_grid"] for aug in augmentations])}
                reports += compare(f"{name}/", grids, {UINT8_CROPS: crops}, lambda _, expected: UINT8_TOLERANCE)
    write_json(folder / "index.json", {"augs": msgspec.to_builtins(index.augs), "sets": written})
    return reports


def plain_id(id: Any) -> Any:
    """An id in the form to compare: lists become tuples."""
    return tuple(id) if isinstance(id, list | tuple) else id


def open_recorded(name: str, data_folder: Path, cache: Path) -> HandDataset:
    """A dataset by its recorded name, {set}[_{Mugsy|Ego}_{frame|segment}]_{train|test}."""
    match = re.fullmatch(r"([A-Za-z0-9]+)(?:_(Mugsy|Ego)_(frame|segment))?_(train|test)", name)
    if not match:
        raise UserError(f"the recorded results name a dataset {name!r}, which this system does not have")
    config = Config()
    if match[2]:
        config = replace(config, cam_mode=f"{match[2]}_cameras", envmap_mode=f"envmap_per_{match[3]}")
    return open_dataset(match[1], match[4], config, data_folder, cache)


def make_set(
    dataset: HandDataset,
    indices: list[int],
    augmentations: dict[str, Augmentation],
    mano: TwoHandMano,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """All samples under all augmentations, by recorded names; a test split knows only `identity`."""
    name, frames = dataset.source.name, dataset.frames
    found = {f"datalist/{key}": value for key, value in datalist(dataset, indices).items()}
    if dataset.source.split == "test":
        batch = to_device(default_collate([dataset[i] for i in indices]), device)
        views = {"identity": official_eval_sample(name, batch, mano, frames)}
    else:
        batches = {
            key: default_collate([dataset.sample(i, aug, float_crop=True) for i in indices])
            for key, aug in augmentations.items()
        }
        views = {key: official_sample(to_device(batch, device), mano, frames) for key, batch in batches.items()}
    return found | {f"{key}/{field}": value for key, view in views.items() for field, value in view.items()}


def uint8_crops(dataset: HandDataset, indices: list[int], augmentations: dict[str, Augmentation]) -> np.ndarray:
    """The image grids under all augmentations of the crops as training samples them; the published are float32."""
    batches = [default_collate([dataset.sample(i, aug) for i in indices]) for aug in augmentations.values()]
    return np.concatenate([build_images(batch)[:, :, 16::32, 16::32].numpy() for batch in batches])


def datalist(dataset: HandDataset, indices: list[int]) -> dict[str, np.ndarray]:
    """What the published datasets keep of an annotation: px, mm, the files' order of joints; NaN for a missing box."""
    source = dataset.source
    annotations = [source.annotation(i) for i in indices]
    boxes = np.array([hand_boxes(annotation) for annotation in annotations])
    values = {"body_bbox": np.array([body_box_of(a, dataset.frames, dataset.box_extension) for a in annotations])}
    if source.name in ("InterHand26M", "MSCOCO"):
        values |= {"rhand_bbox": boxes[:, 0], "lhand_bbox": boxes[:, 1]}
        values["joint_img"] = in_file_order([a.joints_image for a in annotations], source.name)
        values["joint_valid"] = in_file_order([a.joints_valid[..., None] for a in annotations], source.name)
    if source.name == "InterHand26M":
        values["joint_cam"] = 1000 * in_file_order([a.joints_cam for a in annotations], source.name)
        values["joint_trunc"] = in_file_order([a.joints_scored[..., None] for a in annotations], source.name)
    return {key: value.astype(np.float32) for key, value in values.items()}


def hand_boxes(annotation: Annotation) -> np.ndarray:
    if annotation.boxes_image is None:
        return np.full((2, 4), np.nan)
    return np.where(annotation.boxes_valid[:, None], annotation.boxes_image, np.nan)


def in_file_order(hands: list[np.ndarray], name: str) -> np.ndarray:
    """N x (2, 21, C) in our order -> (N, 42, C) in the order of the dataset's files."""
    joints = np.array(hands)
    if name == "InterHand26M":
        return joints[:, :, [JOINTS.index(joint) for joint in INTERHAND_JOINTS]].reshape(len(joints), 42, -1)
    return joints[:, ::-1].reshape(len(joints), 42, -1)  # MSCOCO: left hand first


def by_field(
    keys: Iterable[str], values: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Field, without the augmentation -> the arrays of all augmentations, one after the other.

    What is 0 or 1 by a point in or out of the image is 0 where that point lies at the border.
    """
    fields = defaultdict(list)
    for key in keys:
        array = values[key]
        if is_truncation(key):
            points = recorded[key.replace("meta_info/", "targets/").replace("trunc", "img")]
            border = np.minimum(np.abs(points), np.abs(points - (48, 64, 8))) < BORDER
            array = np.where(border.any(-1, keepdims=True), 0, array)
        fields[key if key.startswith("datalist/") else key.split("/", 1)[1]].append(array)
    return {field: np.concatenate(arrays) for field, arrays in fields.items()}


def is_truncation(field: str) -> bool:
    return "meta_info/" in field and field.endswith("_trunc")


def compare_set(group: str, recorded: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> list[Report]:
    """One line per field; ours has more than is recorded, and the published lists keep fields that ours do not."""
    known = [key for key in recorded if key in ours or not key.startswith("datalist/")]

    def last(field: str) -> str:
        return field.rsplit("/", 1)[-1].removeprefix("lhand_").removeprefix("rhand_")

    def prepare(field: str, values: np.ndarray) -> np.ndarray:
        return rotation_matrices(values) if last(field) == "mano_pose" else values

    def allowed(field: str, expected: np.ndarray) -> float | np.ndarray:
        if is_truncation(field):
            return 0.0
        if last(field).startswith("img_"):
            return TOLERANCE[last(field)]
        tolerance = MM_TOLERANCE if field == "datalist/joint_cam" else TOLERANCE.get(last(field), OTHER_TOLERANCE)
        return tolerance + RELATIVE * np.abs(np.nan_to_num(expected))

    found = by_field([key for key in known if key in ours], ours, recorded)
    return compare(group, by_field(known, recorded, recorded), found, allowed, prepare)
