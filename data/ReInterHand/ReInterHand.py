"""Re:InterHand: one folder a capture, data/m--*/, with pictures of studio (Mugsy) or worn (Ego) cameras.

Images: Mugsy_cameras/{envmap_mode}/images/{camera}/%06d.png or Ego_cameras/{envmap_mode}/images/%06d.png.
Joints: orig_fits/{right,left}/Keypoints/keypoint-%06d.json (mm), MANO: mano_fits/params/{frame}_{right,left}.json (m);
both in world axes. They are small files, read one by one when a sample asks for them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from common.errors import UserError
from common.types import SIDES, Annotation
from common.utils.boxes import bbox_from_points, xywh_to_xyxy
from common.utils.camera import CaptureCamera, project_capture, world_to_cam
from common.utils.joints import REINTERHAND_JOINTS, reorder_index
from data.layouts import is_test_capture
from data.reading import HandParams, Positive, as_mano, matrix, read_file, read_json, require, vector

CAMERA_MODES = ("Mugsy_cameras", "Ego_cameras")
ENVMAP_MODES = ("envmap_per_frame", "envmap_per_segment")
HAND_BOX_EXTENSION = 1.2
MIN_VISIBLE = 0.2  # of a hand in an Ego image; the file calls it truncation ratio, but larger is more visible
NEAREST_DEPTH = 1e-4  # m, stands for a depth of 0, through which nothing can be projected
STUB = REINTERHAND_JOINTS.index("Forearm_Stub")


class CameraFile(msgspec.Struct):
    R: matrix(3, 3)
    t: vector(3)
    focal: vector(2, Positive)
    princpt: vector(2)
    D: vector(4) | None = None

    def camera(self) -> CaptureCamera:
        numbers = (np.array(x, np.float64) for x in (self.focal, self.princpt, self.R))
        distortion = None if self.D is None else np.array(self.D)
        return CaptureCamera(*numbers, np.array(self.t) / 1000, distortion)


@dataclass(frozen=True)
class Shot:
    """The frames that one camera took of one capture."""

    capture: str
    camera: str | None  # None: Ego
    frames: np.ndarray  # (F,) int32


class ReInterHand:
    """The pictures of a split. Captures, cameras and frames are in sorted order.

    Args:
        root: the dataset's folder.
        split: train or test.
        cam_mode: Mugsy_cameras or Ego_cameras.
        envmap_mode: envmap_per_frame or envmap_per_segment.

    Raises:
        UserError: a file or folder is missing or is not what it should be.
    """

    name = "ReInterHand"
    in_the_wild = False
    index_joints = reorder_index(REINTERHAND_JOINTS)

    def __init__(
        self,
        root: Path,
        split: str,
        cam_mode: str = "Mugsy_cameras",
        envmap_mode: str = "envmap_per_frame",
    ) -> None:
        for value, known in ((cam_mode, CAMERA_MODES), (envmap_mode, ENVMAP_MODES)):
            if value not in known:
                raise UserError(f"ReInterHand setting {value!r}: choose one of {', '.join(known)}")
        self.split, self.cam_mode, self.envmap_mode = split, cam_mode, envmap_mode
        self.folder = root / "data"
        require(self.name, [self.folder])
        captures = sorted(
            path.name
            for path in self.folder.glob("m--*")
            if path.is_dir() and is_test_capture(path.name) == (split == "test")
        )
        if not captures:
            require(self.name, [self.folder / f"m--* (a {split} capture)"])
        self._shots = [shot for capture in captures for shot in self._list_shots(capture)]
        self._ends = np.cumsum([len(shot.frames) for shot in self._shots])
        if not len(self):
            raise UserError(f"ReInterHand: there is no picture of {cam_mode}, {envmap_mode} below {self.folder}")
        self._cameras: dict[str, dict[str, CameraFile]] = {}

    def _list_shots(self, capture: str) -> list[Shot]:
        folder = self.folder / capture
        pictures = folder / self.cam_mode / self.envmap_mode
        require(self.name, [pictures / "images", folder / "orig_fits", folder / "mano_fits"])
        if self.cam_mode == "Ego_cameras":
            visible = read_json(pictures / "truncation_ratio.json", dict[str, float])
            frames = read_frame_list(folder / "frame_list.txt")
            unknown = [frame for frame in frames if f"{frame:06d}" not in visible]
            if unknown:
                raise UserError(f"{pictures / 'truncation_ratio.json'} has no frame {unknown[0]:06d} of frame_list.txt")
            kept = [frame for frame in frames if visible[f"{frame:06d}"] >= MIN_VISIBLE]
            return [Shot(capture, None, np.array(kept, np.int32))]
        require(self.name, [folder / "Mugsy_cameras" / "cam_params.json"])
        cameras = sorted(path.name for path in (pictures / "images").iterdir() if path.is_dir())
        if self.envmap_mode == "envmap_per_segment":
            frames = np.array(read_frame_list(folder / "frame_list.txt"), np.int32)
            return [Shot(capture, camera, frames) for camera in cameras]
        return [Shot(capture, camera, list_frames(pictures / "images" / camera)) for camera in cameras]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def id(self, index: int) -> tuple[str, str | None, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        shot = self._shots[place]
        return shot.capture, shot.camera, int(shot.frames[index - self._ends[place]])

    def _camera(self, capture: str, name: str | None, frame: int) -> CaptureCamera:
        folder = self.folder / capture / self.cam_mode
        if name is None:
            return read_json(folder / self.envmap_mode / "cam_params" / f"{frame:06d}.json", CameraFile).camera()
        if capture not in self._cameras:
            self._cameras[capture] = read_json(folder / "cam_params.json", dict[str, CameraFile])
        if name not in self._cameras[capture]:
            raise UserError(f"{folder / 'cam_params.json'} has no camera {name}")
        return self._cameras[capture][name].camera()

    def annotation(self, index: int) -> Annotation:
        """Raises UserError if a file cannot be read or is not what it should be."""
        capture, camera_name, frame = self.id(index)
        folder = self.folder / capture
        pictures = folder / self.cam_mode / self.envmap_mode / "images"
        image_path = pictures / (camera_name or "") / f"{frame:06d}.png"
        height, width = image_size = read_image_size(image_path)
        camera = self._camera(capture, camera_name, frame)

        keypoints = [folder / "orig_fits" / side / "Keypoints" / f"keypoint-{frame:06d}.json" for side in SIDES]
        joints_world = np.array([read_json(path, matrix(24, 3)) for path in keypoints]) / 1000
        joints_cam = world_to_cam(joints_world, camera.rotation, camera.transl)
        joints_cam[..., 2][joints_cam[..., 2] == 0] = NEAREST_DEPTH
        joints_image = project_capture(joints_cam, camera)
        in_image = ((joints_image >= 0) & (joints_image < (width, height))).all(-1)
        in_image[:, STUB] = False
        boxes, boxes_valid = bbox_from_points(joints_image, in_image, HAND_BOX_EXTENSION)

        fits = [folder / "mano_fits" / "params" / f"{frame}_{side}.json" for side in SIDES]
        mano, mano_transl = as_mano(np.array([read_json(path, HandParams).numbers() for path in fits]))
        all_joints = np.ones((2, len(self.index_joints)), bool)
        return Annotation(
            id=(capture, camera_name, frame),
            image_path=image_path,
            image_size=image_size,
            hand_type="interacting",
            boxes_image=xywh_to_xyxy(boxes),
            boxes_valid=boxes_valid,
            joints_image=joints_image[:, self.index_joints],
            joints_cam=joints_cam[:, self.index_joints],
            joints_valid=all_joints,
            joints_scored=all_joints,
            rel_transl_valid=True,
            mano=mano,
            mano_transl=mano_transl,
            mano_valid=boxes_valid,
            cameras=(camera, camera),
        )


def read_frame_list(path: Path) -> list[int]:
    """Frame numbers: the second word of each line."""
    try:
        frames = [int(line.split()[1]) for line in read_file(path).decode().splitlines() if line.strip()]
        if not all(0 <= frame < 10**9 for frame in frames):
            raise ValueError("a frame number is beyond all others")
        return frames
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: each line should be a segment and a frame number ({error})") from None


def list_frames(folder: Path) -> np.ndarray:
    """The frames whose images are in a folder, sorted, (F,) int32."""
    names = (Path(entry).stem for entry in os.listdir(folder) if entry.endswith(".png"))
    return np.array(sorted(int(name) for name in names if re.fullmatch("[0-9]{1,9}", name)), np.int32)


def read_image_size(path: Path) -> tuple[int, int]:
    """(h, w) from the file's head. Raises UserError if it cannot be read or is no image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception:  # Pillow raises whatever its parsing runs into, and of its own for sizes beyond belief
        raise UserError(f"cannot read {path}: it is no image, or it is damaged or cut short") from None
