"""HIC, Hands in Action: data/HIC.json, images and meshes below data/. Test only; the truth is a mesh of each hand."""

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from common.errors import UserError
from common.types import HAND_TYPES, SIDES, Annotation
from common.utils.boxes import bbox_from_points, xywh_to_xyxy
from common.utils.camera import CaptureCamera, project_capture
from data.layouts import HIC_JSON
from data.reading import (
    UNREADABLE,
    EntryId,
    FileName,
    Pixels,
    Problems,
    StoredSource,
    by_id,
    explain,
    id_of,
    path_in,
    raise_problem,
    read_json,
    read_mesh,
)
from data.store import Columns, StringColumn

VERSION = 2  # of the columns
HAND_BOX_EXTENSION = 1.2
VERTEX_COUNT = 778
CAMERA = CaptureCamera(np.array([525.0, 525.0]), np.array([319.5, 239.5]))  # of all sequences


class Image(msgspec.Struct, gc=False):
    id: EntryId
    file_name: str
    width: Pixels
    height: Pixels


class Label(msgspec.Struct, gc=False):
    id: EntryId
    image_id: EntryId
    hand_type: Literal["right", "left", "interacting"]
    right_mano_path: FileName | None
    left_mano_path: FileName | None


class DataFile(msgspec.Struct):
    images: list[Image]
    annotations: list[msgspec.Raw]


class HIC(StoredSource):
    """The annotations.

    Args:
        root: the dataset's folder.
        split: test; there is no other.
        cache: folder of the annotation cache; default: `cache` in `root`.

    Raises:
        UserError: another split, or a file is missing or is not what it should be.
    """

    name = "HIC"

    def __init__(self, root: Path, split: str, cache: Path | None = None) -> None:
        if split != "test":
            raise UserError(f"HIC has no {split} split; it can only be the test set")
        self.split = split
        file = root / HIC_JSON
        self.images = file.parent  # paths in the file are relative to it
        self._open(root, cache, [file], VERSION, build_columns)

    def files(self, index: int) -> list[Path]:
        """The image and the meshes. Raises UserError as `path_in`."""
        meshes = [self._columns[f"{side}_mesh"][index] for side in SIDES]
        return super().files(index) + [path_in(self.images, mesh) for mesh in meshes if mesh]

    @np.errstate(divide="ignore", invalid="ignore")  # of a mesh that touches the camera; it is named later
    def annotation(self, index: int) -> Annotation:
        """Raises UserError if the annotation was found broken, or a mesh cannot be read."""
        columns = self._columns
        raise_problem(columns, index)
        vertices_cam, valid = np.zeros((2, VERTEX_COUNT, 3)), np.zeros(2, bool)
        for hand, side in enumerate(SIDES):
            path = columns[f"{side}_mesh"][index]
            if path:
                vertices_cam[hand], valid[hand] = read_mesh(path_in(self.images, path), VERTEX_COUNT), True
        # A missing hand has no depth to divide by.
        points = np.where(valid[:, None, None], vertices_cam, 1.0)
        boxes, _ = bbox_from_points(
            project_capture(points, CAMERA), np.ones((2, VERTEX_COUNT), bool), HAND_BOX_EXTENSION
        )
        height, width = columns["image_size"][index].tolist()
        return Annotation(
            id=int(columns["id"][index]),
            image_path=self.files(index)[0],
            image_size=(height, width),
            hand_type=HAND_TYPES[columns["hand_type"][index]],
            boxes_image=xywh_to_xyxy(boxes),
            boxes_valid=valid,
            vertices_cam=vertices_cam,
            vertices_valid=valid,
            cameras=(CAMERA, CAMERA),
        )


def build_columns(file: Path) -> Columns:
    """Read the file."""
    content = read_json(file, DataFile)
    images = by_id(content.images, file)
    problems, labels, found = Problems(), [], []
    for row, raw in enumerate(content.annotations):
        try:
            label = msgspec.json.decode(raw, type=Label)
            found.append(images[label.image_id])
            labels.append(label)
        except (*UNREADABLE, KeyError) as error:
            text = f"there is no image {error}" if isinstance(error, KeyError) else explain(error)
            problems.add(row, f"{file}, annotations[{row}]: {text}")
            labels.append(Label(id_of(raw), -1, "right", None, None))  # stands in for it
            found.append(Image(-1, "", 0, 0))
    return {
        "id": np.array([label.id for label in labels], np.int64),
        "hand_type": np.array([HAND_TYPES.index(label.hand_type) for label in labels], np.int8),
        "file_name": StringColumn.pack(image.file_name for image in found),
        "image_size": np.array([(image.height, image.width) for image in found], np.int32).reshape(-1, 2),
        **{
            f"{side}_mesh": StringColumn.pack(getattr(label, f"{side}_mano_path") or "" for label in labels)
            for side in SIDES
        },
        **problems.columns(np.arange(len(labels))),
    }
