"""Re:InterHand: one folder per capture, data/m--*/, with images of studio (Mugsy) or worn (Ego) cameras.

Images: Mugsy_cameras/{envmap_mode}/images/{camera}/%06d.png or Ego_cameras/{envmap_mode}/images/%06d.png.
Joints: orig_fits/{right,left}/Keypoints/keypoint-%06d.json (mm), MANO: mano_fits/params/{frame}_{right,left}.json (m);
both in world axes. These small files are read one by one, when a sample needs them.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from PIL import Image

from common.errors import UserError
from common.types import SIDES, Annotation
from common.utils.boxes import bbox_from_points, xywh_to_xyxy
from common.utils.camera import CaptureCamera, project_capture, world_to_cam
from common.utils.files import check_is_file, read_file
from common.utils.joints import REINTERHAND_JOINTS, reorder_index
from data.layouts import is_test_capture
from data.reading import Focal, HandParams, Matrix3, Vector2, Vector3, Vector4, as_mano, exactly, read_json, require

CAMERA_MODES = ("Mugsy_cameras", "Ego_cameras")
ENVMAP_MODES = ("envmap_per_frame", "envmap_per_segment")
HAND_BOX_EXTENSION = 1.2
MIN_VISIBLE = 0.2  # of a hand in an Ego image; the file calls it truncation ratio, but larger is more visible
NEAREST_DEPTH = 1e-4  # m, stands for a depth of 0, through which nothing can be projected
STUB = REINTERHAND_JOINTS.index("Forearm_Stub")


Keypoints = Annotated[list[Vector3], exactly(24)]


class CameraFile(msgspec.Struct):
    R: Matrix3
    t: Vector3
    focal: Focal
    princpt: Vector2
    D: Vector4 | None = None

    def camera(self) -> CaptureCamera:
        """Metres and pixels."""
        distortion = None if self.D is None else np.array(self.D)
        return CaptureCamera(
            np.array(self.focal), np.array(self.princpt), np.array(self.R), np.array(self.t) / 1000, distortion
        )


@dataclass(frozen=True)
class Shot:
    """The frames that one camera took of one capture."""

    capture: str
    camera: str | None  # None: Ego
    frames: np.ndarray  # (F,) int32


class ReInterHand:
    """The images of a split. Captures, cameras and frames are in sorted order.

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
        self, root: Path, split: str, cam_mode: str = "Mugsy_cameras", envmap_mode: str = "envmap_per_frame"
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
        needed = [f"{cam_mode}/{envmap_mode}/images", "orig_fits", "mano_fits"]
        needed += ["Mugsy_cameras/cam_params.json"] if cam_mode == "Mugsy_cameras" else []
        require(self.name, [self.folder / capture / name for capture in captures for name in needed])
        self.shots = [shot for capture in captures for shot in self._list_shots(capture)]
        self._ends = np.cumsum([len(shot.frames) for shot in self.shots])
        if not len(self):
            raise UserError(f"ReInterHand: there is no image of {cam_mode}, {envmap_mode} below {self.folder}")
        self._cameras: dict[str, dict[str, CameraFile]] = {}

    def _list_shots(self, capture: str) -> list[Shot]:
        folder = self.folder / capture
        images = folder / self.cam_mode / self.envmap_mode
        if self.cam_mode == "Ego_cameras":
            visible = read_json(images / "truncation_ratio.json", dict[str, float])
            listed = read_frame_list(folder / "frame_list.txt")
            unknown = [frame for frame in listed if f"{frame:06d}" not in visible]
            if unknown:
                raise UserError(f"{images / 'truncation_ratio.json'} has no frame {unknown[0]:06d} of frame_list.txt")
            kept = [frame for frame in listed if visible[f"{frame:06d}"] >= MIN_VISIBLE]
            return [Shot(capture, None, np.array(kept, np.int32))]
        cameras = sorted(path.name for path in (images / "images").iterdir() if path.is_dir())
        if self.envmap_mode == "envmap_per_segment":
            frames = np.array(read_frame_list(folder / "frame_list.txt"), np.int32)
            return [Shot(capture, camera, frames) for camera in cameras]
        return [Shot(capture, camera, list_frames(images / "images" / camera)) for camera in cameras]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def id(self, index: int) -> tuple[str, str | None, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        shot = self.shots[place]
        return shot.capture, shot.camera, int(shot.frames[index - self._ends[place]])

    def _camera(self, capture: str, name: str | None, frame: int) -> CameraFile:
        folder = self.folder / capture / self.cam_mode
        if name is None:
            return read_json(folder / self.envmap_mode / "cam_params" / f"{frame:06d}.json", CameraFile)
        if capture not in self._cameras:
            self._cameras[capture] = read_json(folder / "cam_params.json", dict[str, CameraFile])
        if name not in self._cameras[capture]:
            raise UserError(f"{folder / 'cam_params.json'} has no camera {name}")
        return self._cameras[capture][name]

    def files(self, index: int) -> list[Path]:
        """The image, the keypoints and the MANO fits of the right and left hand, and the camera of an Ego image."""
        capture, camera, frame = self.id(index)
        folder = self.folder / capture
        mode = folder / self.cam_mode / self.envmap_mode
        files = [mode / "images" / (camera or "") / f"{frame:06d}.png"]
        files += [folder / "orig_fits" / side / "Keypoints" / f"keypoint-{frame:06d}.json" for side in SIDES]
        files += [folder / "mano_fits" / "params" / f"{frame}_{side}.json" for side in SIDES]
        return files + ([] if camera else [mode / "cam_params" / f"{frame:06d}.json"])

    def problems(self) -> Sequence[tuple[int, str]]:
        """None are known before a sample is read."""
        return ()

    def counts(self) -> dict[str, int]:
        """Numbers of annotations, captures and cameras."""
        captures = {shot.capture for shot in self.shots}
        return {"annotations": len(self), "captures": len(captures), "cameras": len({s.camera for s in self.shots})}

    def check_cache(self) -> None:
        """There is no cache."""

    def annotation(self, index: int) -> Annotation:
        """Raises UserError if a file cannot be read or is not what it should be."""
        capture, camera_name, frame = self.id(index)
        image_path, *files = self.files(index)
        height, width = image_size = read_image_size(image_path)
        numbers = self._camera(capture, camera_name, frame)
        camera = numbers.camera()
        joints_world = np.array([read_json(path, Keypoints) for path in files[:2]]) / 1000
        joints_cam = world_to_cam(joints_world, np.array(numbers.R), np.array(numbers.t) / 1000)
        joints_cam[..., 2][joints_cam[..., 2] == 0] = NEAREST_DEPTH
        joints_image = project_capture(joints_cam, camera)
        in_image = np.all((joints_image >= 0) & (joints_image < (width, height)), -1)
        in_image[:, STUB] = False
        boxes, boxes_valid = bbox_from_points(joints_image, in_image, HAND_BOX_EXTENSION)

        mano, mano_transl = as_mano(np.array([read_json(path, HandParams).numbers() for path in files[2:4]]))
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
            raise ValueError("a frame number is out of range")
        return frames
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: each line should be a segment and a frame number ({error})") from None


def list_frames(folder: Path) -> np.ndarray:
    """The frames whose images are in a folder, sorted, (F,) int32."""
    names = (Path(entry).stem for entry in os.listdir(folder) if entry.endswith(".png"))
    return np.array(sorted(int(name) for name in names if re.fullmatch("[0-9]{1,9}", name)), np.int32)


def read_image_size(path: Path) -> tuple[int, int]:
    """(h, w) from the file's head. Raises UserError if it cannot be read or is not an image."""
    try:
        check_is_file(path)
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception:  # Pillow raises whatever its parsing runs into, and an error of its own for implausible sizes
        raise UserError(f"cannot read {path}: it is not an image, or it is damaged or cut short") from None
