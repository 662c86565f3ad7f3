"""What the demo writes for a photo: images, meshes, parameters, and everything as data.

Frames and units are the same in every file: pixels of the photo, centers at integers, x right, y down; metres in the
camera's axes, x right, y down, z away; rotations as axis-angle in radians. Only GLB has y up, as viewers expect.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.export import write_glb, write_html, write_obj, write_ply
from common.drawing.overlay import draw_boxes, draw_skeletons
from common.drawing.raster import HandMesh
from common.drawing.render import HAND_RGB, render_hands
from common.errors import UserError
from common.types import SIDES
from common.utils.camera import Camera, project
from common.utils.files import atomic_write, make_folder, write_image, write_json
from common.utils.images import TURNS
from common.utils.joints import JOINTS
from demo.hands import Hand, PhotoHands
from demo.side_view import draw_side_view

MAX_NAME = 255  # characters of a file name, where the system does not tell
FOLDERS = ("boxes", "meshes", "params", "renders", "results")
UNITS = {
    "image": "pixels of the photo, centres at integers, x right, y down",
    "cam": "metres, x right, y down, z away from the camera",
    "rotations": "axis-angle, radians",
}
DEPTH_METRIC = "metric: the hands stand before the given camera"
DEPTH_VIRTUAL = "virtual: the camera is unknown, only differences in depth within one camera mean anything"


class ResultWriter:
    """Writes the results of photos to one folder. Threads may share it.

    Args:
        folder: where the folders of `FOLDERS` go.
        faces: (2, F, 3) of the right and the left hand.
        hand_model: the hand model's name, which stands in every file that depends on it.
        mesh_formats: of obj, ply, glb.
        html: also write an interactive page.
        renderer: see `common.drawing.render.render_hands`.

    Raises:
        UserError: a folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        faces: np.ndarray,
        hand_model: str,
        mesh_formats: Sequence[str] = ("obj", "ply", "glb"),
        html: bool = False,
        renderer: str = "auto",
    ) -> None:
        self.folder, self.faces, self.hand_model = folder, faces, hand_model
        self.mesh_formats, self.html, self.renderer = tuple(mesh_formats), html, renderer
        # A missing renderer or a read-only folder is found now, not after the network has run.
        render_hands(np.zeros((1, 1, 3), np.uint8), [], renderer)
        for name in FOLDERS:
            make_folder(folder / name)
            probe = folder / name / ".writable"
            atomic_write(probe, b"")
            probe.unlink(missing_ok=True)

    def begin(self, name: str) -> None:
        """Remove `results/NAME.json` of an earlier run: where it exists, a photo's other files are of the same run.

        Raises:
            UserError: the results' names would be too long.
            OSError: the old file cannot be removed.
        """
        longest = len(os.fsencode(f"{name}_skeleton.jpg"))
        limit = os.pathconf(self.folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else MAX_NAME
        if longest > limit:
            raise UserError(f"its results' file names would have {longest} bytes, of at most {limit}; "
                            "choose a shorter name")  # fmt: skip
        self._path("results", name, ".json").unlink(missing_ok=True)

    def write(self, name: str, image: np.ndarray, photo: PhotoHands | Exception, orientation: int = 1) -> None:
        """Write all files of one photo. Nothing is written if its results are not finite or cannot be drawn.

        Args:
            name: the files' name.
            image: (H, W, 3) uint8 RGB.
            photo: an exception is raised here.
            orientation: the EXIF orientation that was undone, see `common.utils.images.load_photo`.

        Raises:
            UserError: a file cannot be written, or the network's output is not finite.
        """
        if isinstance(photo, Exception):
            raise photo
        content = photo_to_dict(name, photo, self.hand_model)
        if orientation != 1:
            content |= {"exif_orientation": orientation, "turned": TURNS[orientation]}
        meshes = [HandMesh(hand.vertices_cam, self._faces(hand), SIDES.index(hand.side), hand.camera)
                  for hand in photo.hands]  # fmt: skip
        scene = meshes if photo.pair or photo.metric else merge_into_shared_camera(meshes)
        images = self._draw(image, photo, meshes)
        self._remove_dropped(name, photo)
        for kind, drawn in images.items():
            write_image(self._path("renders", name, f"_{kind}.jpg"), drawn)
        for hand in photo.hands:
            self._write_hand(name, hand, photo)
        if "glb" in self.mesh_formats and scene:
            write_glb(self._path("meshes", name, ".glb"), scene)
        if self.html and scene:
            write_html(self._path("renders", name, ".html"), scene, name)
        boxes = {
            side: {"box": photo.boxes_image[index].tolist(), "confidence": float(photo.confidences[index])}
            for index, side in enumerate(SIDES)
        }
        write_json(self._path("boxes", name, ".json"), boxes)
        write_json(self._path("results", name, ".json"), content)  # last: where it is, the others are

    def _path(self, folder: str, name: str, ending: str) -> Path:
        return self.folder / folder / (name + ending)

    def _faces(self, hand: Hand) -> np.ndarray:
        return self.faces[SIDES.index(hand.side)]

    def _remove_dropped(self, name: str, photo: PhotoHands) -> None:
        """Remove an earlier run's files of a hand that is left out now."""
        for side in photo.dropped:
            stale = [self._path("params", name, f"_{side}.json")]
            stale += [self._path("meshes", name, f"_{side}.{suffix}") for suffix in ("obj", "ply")]
            if not photo.hands:
                stale += [self._path("meshes", name, ".glb"), self._path("renders", name, ".html")]
            for path in stale:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _draw(self, image: np.ndarray, photo: PhotoHands, meshes: list[HandMesh]) -> dict[str, np.ndarray]:
        """Kind -> (H, W, 3) uint8 RGB."""
        shown = np.array([side not in photo.dropped for side in SIDES])
        joints = np.zeros((2, len(JOINTS), 2))
        for hand in photo.hands:
            joints[SIDES.index(hand.side)] = hand.joints_image
        return {
            "box": draw_boxes(image, photo.boxes_image, photo.confidences, shown),
            "skeleton": draw_skeletons(image, joints, shown),
            "mesh": render_hands(image, meshes, self.renderer),
            "side": draw_side_view(photo.image_size, meshes, photo.pair, self.renderer),
        }

    def _write_hand(self, name: str, hand: Hand, photo: PhotoHands) -> None:
        stem, faces = f"_{hand.side}", self._faces(hand)
        if "obj" in self.mesh_formats:
            write_obj(self._path("meshes", name, f"{stem}.obj"), hand.vertices_cam, faces)
        if "ply" in self.mesh_formats:
            colour = np.array(HAND_RGB[SIDES.index(hand.side)])
            write_ply(self._path("meshes", name, f"{stem}.ply"), hand.vertices_cam, faces, colour)
        params = {
            # The published names come first.
            "root_pose": hand.global_orient.tolist(),
            "hand_pose": hand.hand_pose.reshape(-1).tolist(),
            "shape": hand.betas.tolist(),
            "root_trans": [0, 0, 0] if hand.side == "right" else photo.rel_transl.tolist(),
            "hand_model": self.hand_model,
        }
        write_json(self._path("params", name, f"{stem}.json"), params)


def merge_into_shared_camera(hands: Sequence[HandMesh]) -> list[HandMesh]:
    """Move hands with a virtual camera each to where the photo shows them, in the first one's camera.

    Their sizes stay. Their distance, in units of the first one, is a guess, and their depths mean nothing; but the
    hands do not intersect, as they would without it.

    Raises:
        UserError: the first hand's camera sees it as a point.
    """
    moved = list(hands[:1])
    if len(hands) > 1 and not np.all(hands[0].camera.focal):
        raise UserError("the network predicts a hand without extent; the checkpoint may be damaged or untrained")
    for hand in hands[1:]:
        first, middle = moved[0], hand.vertices_cam.mean(0)
        xy = (project(middle, hand.camera) - first.camera.princpt) / first.camera.focal
        shift = np.append(xy, first.vertices_cam[:, 2].mean()) - middle
        moved.append(replace(hand, vertices_cam=hand.vertices_cam + shift, camera=first.camera))
    return moved


def camera_to_dict(camera: Camera) -> dict[str, Any]:
    """A camera as data, with its projection formula."""
    kind, unit, formula = ("pinhole", "px", "x = focal_x * X / Z + princpt_x, y likewise")
    if camera.orthographic:
        kind, unit, formula = ("orthographic", "px per metre", "x = focal_x * X + princpt_x, y likewise")
    return {
        "type": kind,
        "virtual": camera.orthographic,
        "focal": [float(value) for value in camera.focal],
        "focal_unit": unit,
        "princpt": [float(value) for value in camera.princpt],
        "projection": formula,
    }


def photo_to_dict(name: str, photo: PhotoHands, hand_model: str) -> dict[str, Any]:
    """One photo's hands as plain data, without the vertices (they are in the mesh files).

    Raises:
        UserError: a number is not finite.
    """
    hands: dict[str, Any] = {}
    for index, side in enumerate(SIDES):
        hands[side] = {"confidence": float(photo.confidences[index]), "box_image": photo.boxes_image[index].tolist()}
        hand = getattr(photo, side)
        if hand is None:
            hands[side]["dropped"] = photo.dropped[side]
            continue
        hands[side] |= {
            "joints_image": hand.joints_image.tolist(),
            "joints_depth_rel": hand.joints_depth_rel.tolist(),
            "joints_cam": hand.joints_cam.tolist(),
            "camera": camera_to_dict(hand.camera),
            "global_orient": hand.global_orient.tolist(),
            "hand_pose": hand.hand_pose.tolist(),
            "betas": hand.betas.tolist(),
        }
    _check_finite(photo)
    return {
        "name": name,
        "image_size": {"width": photo.image_size[1], "height": photo.image_size[0]},
        "units": UNITS,
        "hand_model": hand_model,
        "depth": DEPTH_METRIC if photo.metric else DEPTH_VIRTUAL,
        "joint_names": JOINTS,
        "body_box_image_xywh": photo.body_box_image.tolist(),
        "pair": photo.pair,
        "box_iou": photo.box_iou,
        "rel_transl": photo.rel_transl.tolist(),
        "hands": hands,
    }


def _check_finite(photo: PhotoHands) -> None:
    arrays = [photo.boxes_image, photo.confidences, photo.rel_transl]
    for hand in photo.hands:
        arrays += [hand.vertices_cam, hand.joints_image, hand.joints_depth_rel, hand.camera.focal, hand.camera.princpt]
        arrays += [hand.global_orient, hand.hand_pose, hand.betas]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("the network's output is not finite; the checkpoint may be damaged")
