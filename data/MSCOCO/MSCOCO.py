"""MSCOCO with COCO-WholeBody annotations: annotations/coco_wholebody_{train,val}_v1.0.json, images/{train,val}2017.

For training also annotations/MSCOCO_train_MANO_NeuralAnnot.json. Everything is 2D or, for MANO, already in `cam`.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from tqdm import tqdm

from common.types import LEFT, RIGHT, SIDES, Annotation
from common.utils.boxes import sanitize_boxes_xywh, sanitize_xywh, xywh_to_xyxy
from common.utils.camera import CaptureCamera
from common.utils.joints import COCO_JOINTS, reorder_index
from data.layouts import COCO_IMAGES, COCO_JSON, COCO_MANO
from data.reading import (
    LARGEST,
    UNREADABLE,
    EntryId,
    Focal,
    HandParams,
    Number,
    Pixels,
    Problems,
    StoredSource,
    Vector2,
    Vector4,
    as_mano,
    by_id,
    exactly,
    explain,
    id_of,
    raise_problem,
    read_json,
)
from data.store import Columns, StringColumn

VERSION = 3  # of the columns
FILE_SPLITS = {"train": "train", "test": "val"}
# Keeps the type of a JSON number: `8` is an int, `8.0` a float.
IntegerOrNumber = Annotated[int, msgspec.Meta(ge=-int(LARGEST), le=int(LARGEST))] | Number


Keypoints = Annotated[list[Number], exactly(63)]


class Image(msgspec.Struct, gc=False):
    id: EntryId
    file_name: str
    width: Pixels
    height: Pixels


class Person(msgspec.Struct, gc=False):
    id: EntryId
    image_id: EntryId
    iscrowd: int
    num_keypoints: int
    bbox: Annotated[list[IntegerOrNumber], exactly(4)]
    lefthand_valid: bool
    righthand_valid: bool
    lefthand_box: Vector4
    righthand_box: Vector4
    lefthand_kpts: Keypoints
    righthand_kpts: Keypoints


class DataFile(msgspec.Struct):
    images: list[Image]
    annotations: list[msgspec.Raw]


class ImageCamera(msgspec.Struct, gc=False):
    focal: Focal
    princpt: Vector2


class HandFit(msgspec.Struct, gc=False):
    mano_param: HandParams
    cam_param: ImageCamera


class Fits(msgspec.Struct, gc=False):
    right: HandFit | None
    left: HandFit | None


class MSCOCO(StoredSource):
    """The people with a visible hand in a split.

    Args:
        root: the dataset's folder.
        split: train; or test, which is val2017.
        cache: folder of the annotation cache; default: `cache` in `root`.

    Raises:
        UserError: a file is missing or is not what it should be.
    """

    name = "MSCOCO"
    in_the_wild = True

    def __init__(self, root: Path, split: str, cache: Path | None = None) -> None:
        self.split = split
        self.images = root / COCO_IMAGES.format(split=FILE_SPLITS[split])
        files = [root / COCO_JSON.format(split=FILE_SPLITS[split])]
        if split == "train":
            files.append(root / COCO_MANO)
        self._open(root, cache, files, VERSION, build_columns)

    def annotation(self, index: int) -> Annotation:
        """Raises UserError if the annotation was found broken."""
        columns = self._columns
        raise_problem(columns, index)
        height, width = columns["image_size"][index].tolist()
        joints = np.asarray(columns["joints"][index])
        mano, mano_transl = as_mano(np.asarray(columns["mano"][index]))
        body_box = np.asarray(columns["body_box_image"][index])
        focal, princpt = np.asarray(columns["focal"][index]), np.asarray(columns["princpt"][index])
        return Annotation(
            id=int(columns["id"][index]),
            image_path=self.files(index)[0],
            image_size=(height, width),
            body_box_image=body_box.astype(np.int64) if columns["body_box_is_integer"][index] else body_box,
            boxes_image=np.asarray(columns["boxes_image"][index]),
            boxes_valid=np.asarray(columns["boxes_valid"][index]),
            joints_image=joints[..., :2],
            joints_valid=joints[..., 2] > 0,
            mano=mano,
            mano_transl=mano_transl,
            mano_valid=np.asarray(columns["mano_valid"][index]),
            cameras=(CaptureCamera(focal[RIGHT], princpt[RIGHT]), CaptureCamera(focal[LEFT], princpt[LEFT])),
        )


def build_columns(data_file: Path, mano_file: Path | None = None) -> Columns:
    """Read the files; leave out crowds, people without keypoints, without a hand, or without a usable body box."""
    content = read_json(data_file, DataFile)
    images = by_id(content.images, data_file)
    fits = read_json(mano_file, dict[str, msgspec.Raw]) if mano_file else {}
    decode = msgspec.json.Decoder(Person).decode
    problems = Problems()
    people: list[Person] = []
    for place, raw in enumerate(tqdm(content.annotations, desc="annotations", delay=1, leave=False)):
        try:
            person = decode(raw)
            if person.image_id not in images:
                raise ValueError(f"there is no image {person.image_id}")
        except (*UNREADABLE, ValueError) as error:
            problems.add(len(people), f"{data_file}, annotations[{place}]: {explain(error)}")
            people.append(_broken(raw, images))
            continue
        if _is_used(person, images[person.image_id]):
            people.append(person)
    return {**_columns(people, images), **_fit_columns(people, fits, mano_file, problems)}


def _is_used(person: Person, image: Image) -> bool:
    return (
        not person.iscrowd
        and person.num_keypoints != 0
        and (person.lefthand_valid or person.righthand_valid)
        and sanitize_xywh(np.array(person.bbox), (image.height, image.width)) is not None
    )


def _broken(raw: msgspec.Raw, images: dict[int, Image]) -> Person:
    """Stands in for an annotation that cannot be read."""
    zeros = [0.0] * 63
    return Person(id_of(raw), -1, 0, 0, zeros[:4], False, False, zeros[:4], zeros[:4], zeros, zeros)


def _columns(people: list[Person], images: dict[int, Image]) -> Columns:
    nowhere = Image(-1, "", 0, 0)
    found = [images.get(person.image_id, nowhere) for person in people]
    sizes = np.array([(image.height, image.width) for image in found], np.int32).reshape(-1, 2)
    boxes = np.array([(person.righthand_box, person.lefthand_box) for person in people]).reshape(-1, 2, 4)
    flags = np.array([(person.righthand_valid, person.lefthand_valid) for person in people], bool).reshape(-1, 2)
    boxes, usable = sanitize_boxes_xywh(boxes, sizes[:, None])
    usable &= flags
    joints = np.array([(person.righthand_kpts, person.lefthand_kpts) for person in people], np.float32)
    return {
        "id": np.array([person.id for person in people], np.int64),
        "file_name": StringColumn.pack(image.file_name for image in found),
        "image_size": sizes,
        "body_box_image": np.array([person.bbox for person in people], np.float64).reshape(-1, 4),
        "body_box_is_integer": np.array([all(isinstance(x, int) for x in person.bbox) for person in people], bool),
        "boxes_image": np.where(usable[..., None], xywh_to_xyxy(boxes), 0).astype(np.float32),
        "boxes_valid": usable,
        "joints": joints.reshape(-1, 2, 21, 3)[:, :, reorder_index(COCO_JOINTS)],
    }


def _fit_columns(
    people: list[Person], fits: dict[str, msgspec.Raw], mano_file: Path | None, problems: Problems
) -> Columns:
    """MANO fits by annotation id, and what is wrong with which person."""
    count = len(people)
    mano = np.zeros((count, 2, 61), np.float32)
    valid = np.zeros((count, 2), bool)
    focal, princpt = np.ones((count, 2, 2), np.float32), np.zeros((count, 2, 2), np.float32)
    decode = msgspec.json.Decoder(Fits | None).decode
    for row, person in enumerate(people):
        raw = fits.get(str(person.id))
        if raw is None:
            continue
        try:
            pair = decode(raw)
        except UNREADABLE as error:
            problems.add(row, f"{mano_file}, annotation {person.id}: {explain(error)}")
            continue
        for hand, side in enumerate(SIDES):
            fit = getattr(pair, side, None)
            if fit is not None:
                mano[row, hand], valid[row, hand] = fit.mano_param.numbers(), True
                focal[row, hand], princpt[row, hand] = fit.cam_param.focal, fit.cam_param.princpt
    return {"mano": mano, "mano_valid": valid, "focal": focal, "princpt": princpt, **problems.columns(np.arange(count))}
