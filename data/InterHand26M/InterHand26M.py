"""InterHand2.6M: annotations/{split}/InterHand2.6M_{split}_*.json (data, camera, joint_3d, MANO_NeuralAnnot).

Cameras, joints and MANO fits are in world axes. In the files cameras and joints are in mm and MANO fits in m; here
everything is in m.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from tqdm import tqdm

from common.errors import UserError, error_context
from common.types import HAND_TYPES, LEFT, RIGHT, Annotation
from common.utils.boxes import bbox_from_points, sanitize_boxes_xywh, xywh_to_xyxy
from common.utils.camera import CaptureCamera, project_pinhole, world_to_cam
from common.utils.files import read_file
from common.utils.joints import INTERHAND_JOINTS, WRIST, reorder_index
from data.layouts import INTERHAND_IMAGES, INTERHAND_JSONS, TEST_ID_RANGE, TEST_IDS_LEFT_OUT
from data.reading import (
    UNREADABLE,
    EntryId,
    HandParams,
    Number,
    Pixels,
    Positive,
    Problems,
    StoredSource,
    Vector3,
    as_mano,
    exactly,
    explain,
    id_of,
    raise_problem,
    read_json,
    require,
)
from data.store import Columns, StringColumn

VERSION = 2  # of the columns
SUBSETS = ("all", "human")
HAND_BOX_EXTENSION = 1.2
INVALID_JOINT_CAM = 1e-3  # m, each coordinate: what the published system gives a joint without 3D annotation
CHUNK = 2_000  # annotations projected at once: their arrays fit the processor's cache
_DIGITS_TO_FLAGS, _FLAGS_TO_ZERO = bytes.maketrans(b"01", b"\0\1"), bytes.maketrans(b"\1", b"\0")
# Where the flags are in a list of 42 lists, and of 42 numbers: the first, the distance, and the list with zeros alone.
_FLAG_FORMS = ((2, 4, b"[%s]" % b",".join([b"[\0]"] * 42)), (1, 2, b"[%s]" % b",".join([b"\0"] * 42)))


class Image(msgspec.Struct, gc=False):
    id: EntryId
    file_name: str
    width: Pixels
    height: Pixels
    capture: int
    camera: str
    frame_idx: int


class Label(msgspec.Struct, gc=False):
    id: EntryId
    image_id: EntryId
    joint_valid: msgspec.Raw  # 42 nested one-element lists; as lists they would take 57 M objects
    hand_type: Literal["right", "left", "interacting"]


class DataFile(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


class CaptureCameras(msgspec.Struct):
    campos: dict[str, list[Number]]
    camrot: dict[str, list[list[Number]]]
    focal: dict[str, list[Positive]]
    princpt: dict[str, list[Number]]


class FrameJoints(msgspec.Struct, gc=False):
    world_coord: Annotated[list[Vector3], exactly(42)]
    joint_valid: msgspec.Raw


class FrameMano(msgspec.Struct, gc=False):
    right: HandParams | None
    left: HandParams | None


class InterHand26M(StoredSource):
    """The annotations of a split.

    Args:
        root: the dataset's folder.
        split: train or test.
        subset: "all" annotations; or "human", those annotated by people (the published test): the ids in
            `aid_human_annot_{split}.txt`, for test without that file the published list. Default: train all, test
            human.
        cache: folder of the annotation cache; default: `cache` in `root`.

    Raises:
        UserError: a file is missing or is not what it should be.
    """

    name = "InterHand26M"
    index_joints = reorder_index(INTERHAND_JOINTS)

    def __init__(self, root: Path, split: str, subset: str | None = None, cache: Path | None = None) -> None:
        subset = subset or {"train": "all", "test": "human"}[split]
        if subset not in SUBSETS:
            raise UserError(f"InterHand26M subset {subset!r}: choose one of {', '.join(SUBSETS)}")
        self.root, self.split = root, split
        self.images = root / INTERHAND_IMAGES.format(split=split)
        files = [root / name.format(split=split) for name in INTERHAND_JSONS]
        self._open(root, cache, files, VERSION, build_columns)
        self._rows = None if subset == "all" else self._subset_rows(files[0])

    def _subset_rows(self, data_file: Path) -> np.ndarray:
        """Places of the human-annotated ids that are usable, in the list's order."""
        id_file = self.root / f"aid_human_annot_{self.split}.txt"
        if id_file.exists():
            ids, origin = read_ids(id_file), str(id_file)
        elif self.split == "test":
            ids = np.array([id for id in TEST_ID_RANGE if id not in TEST_IDS_LEFT_OUT], np.int64)
            origin = f"the published test list ({id_file} would replace it)"
        else:
            require(self.name, [id_file])
        known = np.asarray(self._columns["known_id"])  # sorted
        if not len(known):
            raise UserError(f"{data_file} holds no annotation")
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        absent = ids[known[places] != ids]
        if len(absent):
            raise UserError(
                f"{data_file}: {len(absent)} of {len(ids)} annotation ids of {origin} are not in it, "
                f"{absent[0]} for one; get the whole annotation file, an id list that fits, or take the subset 'all'"
            )
        rows = np.asarray(self._columns["known_row"])[places]
        return rows[rows >= 0]

    @np.errstate(divide="ignore", invalid="ignore")  # of a joint in the camera's plane; it is named later
    def annotation(self, index: int) -> Annotation:
        """Raises UserError if the annotation was found broken."""
        row, columns = self._row(index), self._columns
        raise_problem(columns, row)
        camera_row, frame = int(columns["camera"][row]), int(columns["frame"][row])
        numbers = np.asarray(columns["camera_numbers"][camera_row])
        rotation, transl = numbers[:9].reshape(3, 3), numbers[9:12]
        camera = CaptureCamera(numbers[12:14], numbers[14:16], rotation, transl)
        valid = np.asarray(columns["joints_valid"][row])
        joints_world = np.asarray(columns["joints_world"][frame], np.float64)
        joints_cam = world_to_cam(joints_world, rotation, transl)
        # Set by the 3D annotation alone: the no-box rule invalidates joints without moving them.
        joints_cam[~np.asarray(columns["joints_known"][frame])] = INVALID_JOINT_CAM
        boxes_valid = np.asarray(columns["boxes_valid"][row])
        mano, mano_transl = as_mano(np.asarray(columns["mano"][frame]))
        height, width = columns["image_size"][row].tolist()
        return Annotation(
            id=int(columns["id"][row]),
            image_path=self.files(index)[0],
            image_size=(height, width),
            hand_type=HAND_TYPES[columns["hand_type"][row]],
            boxes_image=np.asarray(columns["boxes_image"][row]),
            boxes_valid=boxes_valid,
            joints_image=project_pinhole(joints_cam, camera.focal, camera.princpt),
            joints_cam=joints_cam,
            joints_valid=valid,
            joints_scored=np.asarray(columns["joints_scored"][row]),
            rel_transl_valid=bool(valid[:, WRIST].all()),
            mano=mano,
            mano_transl=mano_transl,
            mano_valid=np.asarray(columns["mano_valid"][frame]) & boxes_valid,
            cameras=(camera, camera),
        )


def read_ids(path: Path) -> np.ndarray:
    """One id per line."""
    with error_context(f"{path}: it should hold one annotation id a line", ValueError, OverflowError):
        return np.array([int(line) for line in read_file(path).split()], np.int64)


def build_columns(data_file: Path, camera_file: Path, joint_file: Path, mano_file: Path) -> Columns:
    """Read the four files and apply the published system's rules on which annotations are used."""
    problems = Problems()
    cameras, camera_rows = _read_cameras(camera_file)
    frames, frame_rows, frame_problems = _read_frames(joint_file, mano_file)
    labels, file_names = _read_labels(
        data_file, joint_file, camera_file, camera_rows, frame_rows, frame_problems, problems
    )
    kept = _apply_rules(labels, cameras, frames, problems)
    rows = np.flatnonzero(kept)
    order = np.argsort(labels["id"], kind="stable")
    new_row = np.where(kept, np.cumsum(kept) - 1, -1)
    return {
        **{name: values[rows] for name, values in labels.items()},
        "file_name": StringColumn.pack(file_names[row] for row in rows),
        **problems.columns(rows),
        "camera_numbers": cameras,
        **frames,
        # All ids of the file, sorted, and the row of each (-1: not used), for lists of ids.
        "known_id": labels["id"][order],
        "known_row": new_row[order],
    }


def _read_cameras(path: Path) -> tuple[np.ndarray, dict[tuple[int, str], int]]:
    """(C, 16) R, t in m, focal, princpt; and the row of each (capture, camera)."""
    numbers: list[np.ndarray] = []
    rows: dict[tuple[int, str], int] = {}
    for capture, raw in read_json(path, dict[str, msgspec.Raw]).items():
        try:
            cameras = msgspec.json.decode(raw, type=CaptureCameras)
        except UNREADABLE as error:
            raise UserError(f"{path}: capture {capture}: {explain(error)}") from None
        for name, axes in cameras.camrot.items():
            with error_context(f"{path}: capture {capture}: camera {name} is not complete", KeyError, ValueError):
                rotation = np.array(axes, np.float64).reshape(3, 3)
                place = np.array(cameras.campos[name], np.float64).reshape(3)
                focal = np.array(cameras.focal[name], np.float64).reshape(2)
                princpt = np.array(cameras.princpt[name], np.float64).reshape(2)
                rows[int(capture), name] = len(numbers)
                numbers.append(np.concatenate((rotation.ravel(), -rotation @ place / 1000, focal, princpt)))
    if not numbers:
        raise UserError(f"{path} holds no camera")
    return np.stack(numbers), rows


def _read_frames(joint_file: Path, mano_file: Path) -> tuple[Columns, dict[tuple[int, int], int], dict[int, str]]:
    """Joints and MANO fits of each (capture, frame), its row, and what is wrong with which row."""
    joints = read_json(joint_file, dict[str, dict[str, msgspec.Raw]])
    manos = read_json(mano_file, dict[str, dict[str, msgspec.Raw]])
    keys = [(capture, frame) for capture, frames in joints.items() for frame in frames]
    if not keys:
        raise UserError(f"{joint_file} holds no frame")
    world = np.zeros((len(keys), 42, 3))
    known = np.zeros((len(keys), 42), bool)
    mano = np.zeros((len(keys), 2, 61), np.float32)
    mano_valid = np.zeros((len(keys), 2), bool)
    problems: dict[int, str] = {}
    for row, (capture, frame) in enumerate(tqdm(keys, desc="joints and MANO fits", delay=1, leave=False)):
        path = joint_file
        try:
            joint = msgspec.json.decode(joints[capture][frame], type=FrameJoints)
            world[row] = joint.world_coord
            known[row] = read_flags(joint.joint_valid)
            path = mano_file
            found = manos.get(capture, {}).get(frame)
            if found is not None:
                params = msgspec.json.decode(found, type=FrameMano)
                for hand, fit in ((RIGHT, params.right), (LEFT, params.left)):
                    if fit is not None:
                        mano[row, hand], mano_valid[row, hand] = fit.numbers(), True
        except (*UNREADABLE, ValueError) as error:
            problems[row] = f"{path}, capture {capture}, frame {frame}: {explain(error)}"
    columns: Columns = {
        "joints_world": (by_hand(world) / 1000).astype(np.float32),
        "joints_known": by_hand(known),
        "mano": mano,
        "mano_valid": mano_valid,
    }
    try:
        rows = {(int(capture), int(frame)): row for row, (capture, frame) in enumerate(keys)}
    except ValueError:
        raise UserError(f"{joint_file}: captures and frames should be whole numbers") from None
    return columns, rows, problems


def by_hand(values: np.ndarray) -> np.ndarray:
    """(N, 42, ...) in the files' order -> (N, 2, 21, ...) in ours."""
    return values.reshape(len(values), 2, 21, *values.shape[2:])[:, :, InterHand26M.index_joints]


def read_flags(raw: msgspec.Raw) -> np.ndarray:
    """[[1],[0],...] or [[true],[false],...] -> (42,) bool.

    Raises:
        ValueError: it is something else.
    """
    text = bytes(raw)
    flags = _to_flags(text)
    if flags is None:  # not the plain [[1],[0],...] of a million annotations
        text = text.replace(b"true", b"1").replace(b"false", b"0").replace(b".0", b"")
        flags = _to_flags(text)
    if flags is None:
        raise ValueError("joint_valid should hold 42 times 0 or 1")
    return np.frombuffer(flags, bool)


def _to_flags(text: bytes) -> bytes | None:
    """42 bytes 0 or 1, or None if the text is not a list of 42 times [0] or [1], or 0 or 1."""
    text = text.translate(_DIGITS_TO_FLAGS, b" \t\r\n")
    for start, step, form in _FLAG_FORMS:
        if len(text) == len(form) and text.translate(_FLAGS_TO_ZERO) == form:
            return text[start:-1:step]
    return None


def _read_labels(
    data_file: Path,
    joint_file: Path,
    camera_file: Path,
    camera_rows: dict[tuple[int, str], int],
    frame_rows: dict[tuple[int, int], int],
    frame_problems: dict[int, str],
    problems: Problems,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """All annotations of the file, in its order, and their images; what is wrong with one goes to `problems`."""
    content = read_json(data_file, DataFile)
    images = _read_images(content.images)
    content.images.clear()
    decode, count = msgspec.json.Decoder(Label).decode, len(content.annotations)
    file_names = [""] * count
    labels: dict[str, np.ndarray] = {
        "id": np.full(count, -1, np.int64),
        "image_size": np.zeros((count, 2), np.int32),
        "hand_type": np.zeros(count, np.int8),
        "camera": np.zeros(count, np.int32),
        "frame": np.zeros(count, np.int32),
        "joints_scored": np.zeros((count, 42), bool),
    }
    for row, raw in enumerate(tqdm(content.annotations, desc="annotations", delay=1, leave=False)):
        try:
            label = decode(raw)
            flags = read_flags(label.joint_valid)
            image = images.get(label.image_id, f"there is no image {label.image_id}")
            if isinstance(image, str):
                raise ValueError(image)
            camera = camera_rows.get((image.capture, image.camera))
            frame = frame_rows.get((image.capture, image.frame_idx))
            if camera is None:
                raise ValueError(f"{camera_file} has no camera {image.camera} of capture {image.capture}")
            if frame is None:
                raise ValueError(f"{joint_file} has no frame {image.frame_idx} of capture {image.capture}")
        except (*UNREADABLE, ValueError) as error:
            labels["id"][row] = id_of(raw)
            problems.add(row, f"{data_file}, annotations[{row}]: {explain(error)}")
            continue
        labels["id"][row], labels["joints_scored"][row] = label.id, flags
        labels["image_size"][row] = image.height, image.width
        labels["hand_type"][row] = HAND_TYPES.index(label.hand_type)
        labels["camera"][row], labels["frame"][row] = camera, frame
        file_names[row] = image.file_name
        if frame in frame_problems:
            problems.add(row, frame_problems[frame])
    labels["joints_scored"] = by_hand(labels["joints_scored"])
    return labels, file_names


def _read_images(raws: list[msgspec.Raw]) -> dict[int, Image | str]:
    """Images by id, or what is wrong with one."""
    images: dict[int, Image | str] = {}
    decode = msgspec.json.Decoder(Image).decode
    for place, raw in enumerate(tqdm(raws, desc="image list", delay=1, leave=False)):
        try:
            image = decode(raw)
            images[image.id] = f"the image id {image.id} is there twice" if image.id in images else image
        except UNREADABLE as error:
            images[id_of(raw)] = f"images[{place}]: {explain(error)}"
    return images


def _apply_rules(labels: dict[str, np.ndarray], cameras: np.ndarray, frames: Columns, problems: Problems) -> np.ndarray:
    """Hand boxes and joint validity, added to `labels`; returns (N,) bool: which annotations are used.

    A hand whose wrist is invalid is wholly so, in each of the two masks by itself. An annotation with an empty mask is
    left out, and one without any hand box.
    """
    count = len(labels["id"])
    known = frames["joints_known"] & frames["joints_known"][:, :, WRIST : WRIST + 1]
    frames["joints_known"] = known
    scored = labels["joints_scored"]
    scored &= scored[:, :, WRIST : WRIST + 1]
    labels["joints_valid"] = np.zeros((count, 2, 21), bool)
    labels["boxes_image"] = np.zeros((count, 2, 4), np.float32)
    labels["boxes_valid"] = np.zeros((count, 2), bool)
    broken = np.zeros(count, bool)
    broken[list(problems.rows())] = True
    kept = broken.copy()
    for start in tqdm(range(0, count, CHUNK), desc="hand boxes", delay=1, leave=False):
        part = slice(start, start + CHUNK)
        valid = known[labels["frame"][part]]
        numbers = cameras[labels["camera"][part]]
        joints_cam = world_to_cam(
            frames["joints_world"][labels["frame"][part]].astype(np.float64),
            numbers[:, :9].reshape(-1, 1, 3, 3),
            numbers[:, None, None, 9:12],
        )
        joints_cam[~valid] = INVALID_JOINT_CAM
        with np.errstate(divide="ignore", invalid="ignore"):
            joints_image = project_pinhole(joints_cam, numbers[:, None, None, 12:14], numbers[:, None, None, 14:])
            boxes, found = bbox_from_points(joints_image, scored[part], HAND_BOX_EXTENSION)
        for row in start + np.flatnonzero((~np.isfinite(boxes)).any((1, 2))):
            problems.add(int(row), "a joint lies in the plane of the camera, so that it has no place in the image")
            kept[row] = True
        boxes, usable = sanitize_boxes_xywh(boxes, labels["image_size"][part][:, None])
        usable &= found
        nonempty = valid.any((1, 2)) & scored[part].any((1, 2))
        kept[part] |= nonempty & usable.any(1)
        labels["boxes_image"][part] = np.where(usable[..., None], xywh_to_xyxy(boxes), 0)
        labels["boxes_valid"][part] = usable
        labels["joints_valid"][part] = valid & usable[..., None]
    scored &= labels["boxes_valid"][..., None]
    return kept
