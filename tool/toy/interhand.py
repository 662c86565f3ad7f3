"""The toy InterHand2.6M: a studio with cameras all around. Also the writer of that dataset's annotation files."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.types import SIDES
from common.utils.camera import CaptureCamera
from common.utils.files import atomic_path, make_folder
from common.utils.joints import INTERHAND_JOINTS, JOINTS
from data.layouts import INTERHAND_JSONS, INTERHAND_TEST_IDS
from tool.toy.backdrops import sample_backdrop
from tool.toy.formats import Plan, box_of, hand_type, mano_record, put, rounded, sample_present
from tool.toy.rendering import Look, sample_look
from tool.toy.scene import Hands, View, look_at, move_hands, orbit, sample_hands, scaled_view, to_image

SET = 1  # of the random numbers
SPLITS = ("train", "test")
JOINT_ORDER = [JOINTS.index(name) for name in INTERHAND_JOINTS]
CAMERAS = ("400002", "400013", "400026", "400048", "400064", "410001", "410018")  # 41...: grey
SIZE = (512, 334)
FIRST_ID = {"train": 10000, "test": 80000}
CENTRE = np.array([0.0, 0.0, 1.0])  # m in the world, where the hands are
SECOND_VIEW_EVERY, NO_MANO_EVERY = 4, 25  # images


class Frame(NamedTuple):
    """A moment of a capture. Its 42 joints are right then left, each from thumb to pinky, tip to base, then wrist."""

    capture: int
    number: int
    hand_type: str  # right, left or interacting
    joints_world: np.ndarray  # (42, 3) m
    joints_valid: np.ndarray  # (42,) bool
    mano: dict[str, Any] | None  # side -> pose, shape, trans in m, or None for an absent hand; None: no fits


class Shot(NamedTuple):
    """One camera's image of a frame, and its annotation."""

    ident: int  # of the annotation; the image's is one more
    capture: int
    sequence: str
    camera: str
    frame: int
    size: tuple[int, int]  # (h, w)
    hand_type: str
    bbox_xywh: list[float]  # px
    joints_valid: np.ndarray  # (42,) bool

    @property
    def file_name(self) -> str:
        """Below the split's images."""
        return f"Capture{self.capture}/{self.sequence}/cam{self.camera}/image{self.frame}.jpg"


def write_interhand_annotations(
    root: Path,
    split: str,
    cameras: Mapping[int, Mapping[str, CaptureCamera]],
    frames: Iterable[Frame],
    shots: Callable[[], Iterable[Shot]],
) -> None:
    """Write the four annotation files of a split, from arrays in metres.

    World coordinates become mm in the files, but MANO's translation stays in m. `campos` is a camera's centre, not a
    translation. Invalid joints are (1, 1, 1), as in the original.

    Args:
        root: the dataset's folder.
        cameras: capture -> name -> camera, world_to_cam.
        frames: all frames of all captures.
        shots: gives the shots, and is called twice: they are written one by one, so that memory stays small.
    """
    data, camera, joint, mano = (root / name.format(split=split) for name in INTERHAND_JSONS)
    make_folder(data.parent)
    _write_lists(data, {"images": map(_image_record, shots()), "annotations": map(_annotation_record, shots())})
    put(camera, {str(capture): _camera_record(views) for capture, views in cameras.items()})
    joints: dict[str, dict[str, Any]] = {str(capture): {} for capture in cameras}
    fits: dict[str, dict[str, Any]] = {str(capture): {} for capture in cameras}
    for frame in frames:
        valid = frame.joints_valid.astype(bool)
        joints[str(frame.capture)][str(frame.number)] = {
            "world_coord": rounded(np.where(valid[:, None], frame.joints_world * 1000, 1.0), 4),
            "joint_valid": valid[:, None].tolist(),
            "hand_type": frame.hand_type,
            "hand_type_valid": True,
        }
        if frame.mano is not None:
            fits[str(frame.capture)][str(frame.number)] = frame.mano
    put(joint, joints)
    put(mano, fits)


def _write_lists(path: Path, lists: dict[str, Iterable[dict[str, Any]]]) -> None:
    """Write a JSON object of lists, record by record."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for k, (name, records) in enumerate(lists.items()):
            file.write(f'{", " if k else "{"}"{name}": [')
            for i, record in enumerate(records):
                file.write(", " * (i > 0) + json.dumps(record))
            file.write("]")
        file.write("}\n")


def _camera_record(cameras: Mapping[str, CaptureCamera]) -> dict[str, dict[str, list]]:
    """A capture's cameras."""
    return {
        "campos": {name: rounded(-camera.rotation.T @ camera.transl * 1000, 4) for name, camera in cameras.items()},
        "camrot": {name: camera.rotation.tolist() for name, camera in cameras.items()},
        "focal": {name: rounded(camera.focal, 4) for name, camera in cameras.items()},
        "princpt": {name: rounded(camera.princpt, 4) for name, camera in cameras.items()},
    }


def _image_record(shot: Shot) -> dict[str, Any]:
    return {
        "id": shot.ident + 1,
        "file_name": shot.file_name,
        "width": shot.size[1],
        "height": shot.size[0],
        "capture": shot.capture,
        "subject": shot.capture,
        "seq_name": shot.sequence,
        "camera": shot.camera,
        "frame_idx": shot.frame,
    }


def _annotation_record(shot: Shot) -> dict[str, Any]:
    return {
        "id": shot.ident,
        "image_id": shot.ident + 1,
        "bbox": shot.bbox_xywh,
        "joint_valid": shot.joints_valid[:, None].astype(int).tolist(),
        "hand_type": shot.hand_type,
        "hand_type_valid": 1,
    }


def write(root: Path, plan: Plan) -> None:
    """Write data/InterHand26M."""
    for split, count in zip(SPLITS, (plan.train, plan.test), strict=True):
        views = {capture: _views(plan, split, capture) for capture in range(2)}
        frames: list[Frame] = []
        shots: list[Shot] = []
        for k in range(count):
            # Either a new moment, or the last one seen by another camera.
            rng = plan.random(SET, SPLITS.index(split), 1, k)
            if not frames or k % SECOND_VIEW_EVERY != SECOND_VIEW_EVERY - 1:
                frame, hands, look = _new_moment(plan, rng, k)
                frames.append(frame)
            shots.append(_write_shot(root, plan, rng, split, k, frame, hands, look, views[frame.capture]))
        cameras = {capture: {name: view.camera for name, view in named.items()} for capture, named in views.items()}
        write_interhand_annotations(root, split, cameras, frames, lambda shots=shots: shots)
        if split == "test":
            put(root / INTERHAND_TEST_IDS, "".join(f"{shot.ident}\n" for shot in shots))


def _views(plan: Plan, split: str, capture: int) -> dict[str, View]:
    rng = plan.random(SET, SPLITS.index(split), 0, capture)
    views = {}
    for name in CAMERAS:
        yaw, pitch = plan.variety * np.radians((rng.uniform(-65, 65), rng.uniform(-30, 45)))
        target = CENTRE + rng.normal(0, 0.015, 3)
        eye = np.round(target + orbit(yaw, pitch, rng.uniform(0.95, 1.2)), 7)
        rotation = np.round(look_at(eye, target, rng.normal(0, 0.12 * plan.variety))[0], 8)
        size = SIZE[::-1] if rng.random() < 0.12 else SIZE
        focal = np.round(rng.normal(1270, 8) + rng.normal(0, 0.5, 2), 4)
        princpt = np.round(np.array(size[::-1]) / 2 + rng.normal(0, 5, 2), 4)
        views[name] = scaled_view(View(CaptureCamera(focal, princpt, rotation, -rotation @ eye), size), plan.scale)
    return views


def _new_moment(plan: Plan, rng: np.random.Generator, k: int) -> tuple[Frame, Hands, Look]:
    hands = sample_hands(rng, plan.rig, sample_present(rng, 0.55), variety=plan.variety)
    hands = move_hands(hands, np.eye(3), CENTRE + rng.normal(0, 0.01, 3))
    valid = np.repeat(hands.present, len(JOINTS))
    if rng.random() < 0.1:  # some joints could not be annotated
        hidden = rng.integers(0, len(valid), 3)
        valid[hidden[hidden % len(JOINTS) != len(JOINTS) - 1]] = False
    fits = {name: mano_record(hands, side) if hands.present[side] else None for side, name in enumerate(SIDES)}
    joints_world = hands.joints[:, JOINT_ORDER].reshape(-1, 3)
    frame = Frame(
        k % 2,
        1000 + 6 * k,
        hand_type(hands.present),
        joints_world,
        valid,
        fits if k % NO_MANO_EVERY != NO_MANO_EVERY - 1 else None,
    )
    return frame, hands, sample_look(rng)


def _write_shot(
    root: Path, plan: Plan, rng: np.random.Generator, split: str, k: int, frame: Frame, hands: Hands, look: Look,
    views: dict[str, View],
) -> Shot:  # fmt: skip
    name = CAMERAS[k % len(CAMERAS)]
    view = views[name]
    bbox = box_of(to_image(view, frame.joints_world[frame.joints_valid]), 1.2)
    shot = Shot(
        ident=FIRST_ID[split] + 3 * k,
        capture=frame.capture,
        sequence=f"{frame.number % 10:04d}_toy_{frame.hand_type}",
        camera=name,
        frame=frame.number,
        size=view.size,
        hand_type=frame.hand_type,
        bbox_xywh=rounded(bbox, 3),
        joints_valid=frame.joints_valid,
    )
    backdrop = sample_backdrop(rng, view.size, studio=rng.random() < 0.6)
    image = plan.photograph(rng, backdrop, hands, view, look, noise=0.03, grey=name.startswith("41"))
    put(root / "images" / split / shot.file_name, image, quality=int(rng.integers(80, 97)))
    return shot
