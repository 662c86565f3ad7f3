"""What the demo writes of a photo: pictures, meshes, parameters, and everything as data.

Frames and units, the same in every file: pixels of the photo, centres at integers, x right, y down; metres in the
camera's axes, x right, y down, z away; rotations as axis-angle in radians. GLB alone is turned to y up, as viewers
expect it.
"""

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
from common.utils.joints import JOINTS
from demo.predictor import Hand, PhotoHands
from demo.side_view import draw_side_view

FOLDERS = ("boxes", "meshes", "params", "renders", "results")
UNITS = {
    "image": "pixels of the photo, centres at integers, x right, y down",
    "cam": "metres, x right, y down, z away from the camera",
    "rotations": "axis-angle, radians",
}
DEPTH_METRIC = "metric: the hands stand before the given camera"
DEPTH_VIRTUAL = "virtual: the camera is unknown, only differences in depth within one camera mean anything"


class ResultWriter:
    """Writes the results of photos under one folder. Threads may share it.

    Args:
        folder: where the folders of `FOLDERS` go.
        faces: (2, F, 3) of the right and the left hand.
        hand_model: what the hand model calls itself; stands in every file that depends on it.
        mesh_formats: of obj, ply, glb.
        html: write an interactive page too.
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
        # Found out now, not after the network has run: a renderer that is not there, a folder that is not ours.
        render_hands(np.zeros((1, 1, 3), np.uint8), [], renderer)
        for name in FOLDERS:
            make_folder(folder / name)
            probe = folder / name / ".writable"
            atomic_write(probe, b"")
            probe.unlink(missing_ok=True)

    def write(self, name: str, image: np.ndarray, photo: PhotoHands) -> None:
        """Write all files of one photo.

        Args:
            name: the files' name.
            image: (H, W, 3) uint8 RGB.

        Raises:
            UserError: a file cannot be written, or the network's output is not finite.
        """
        content = photo_to_dict(name, photo, self.hand_model)
        meshes = [HandMesh(hand.vertices_cam, self._faces(hand), SIDES.index(hand.side), hand.camera)
                  for hand in photo.hands]  # fmt: skip
        self._remove_dropped(name, photo)
        self._write_pictures(name, image, photo, meshes)
        for hand in photo.hands:
            self._write_hand(name, hand, photo)
        scene = meshes if photo.pair or photo.metric else merge_into_shared_camera(meshes)
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
        """A hand left out now must not seem to be there because an earlier run wrote it."""
        for side in photo.dropped:
            stale = [self._path("params", name, f"_{side}.json")]
            stale += [self._path("meshes", name, f"_{side}.{suffix}") for suffix in ("obj", "ply")]
            if not photo.hands:
                stale += [self._path("meshes", name, ".glb"), self._path("renders", name, ".html")]
            for path in stale:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _write_pictures(self, name: str, image: np.ndarray, photo: PhotoHands, meshes: list[HandMesh]) -> None:
        shown = np.array([side not in photo.dropped for side in SIDES])
        joints = np.zeros((2, len(JOINTS), 2))
        for hand in photo.hands:
            joints[SIDES.index(hand.side)] = hand.joints_image
        pictures = {
            "box": draw_boxes(image, photo.boxes_image, photo.confidences, shown),
            "skeleton": draw_skeletons(image, joints, shown),
            "mesh": render_hands(image, meshes, self.renderer),
            "side": draw_side_view(photo.image_size, meshes, photo.pair, self.renderer),
        }
        for kind, picture in pictures.items():
            write_image(self._path("renders", name, f"_{kind}.jpg"), picture)

    def _write_hand(self, name: str, hand: Hand, photo: PhotoHands) -> None:
        stem, faces = f"_{hand.side}", self._faces(hand)
        if "obj" in self.mesh_formats:
            write_obj(self._path("meshes", name, f"{stem}.obj"), hand.vertices_cam, faces)
        if "ply" in self.mesh_formats:
            colour = HAND_RGB[SIDES.index(hand.side)]
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
    """Hands with virtual cameras of their own, moved to where the photo shows them, seen by the first one's camera.

    Their sizes stay. How far they are apart, in units of the first one, is a guess, and in depth means nothing; but
    they do not stand in one another, as they would as they are.
    """
    moved = list(hands[:1])
    for hand in hands[1:]:
        first, middle = moved[0], hand.vertices_cam.mean(0)
        xy = (project(middle, hand.camera) - first.camera.princpt) / first.camera.focal
        shift = np.append(xy, first.vertices_cam[:, 2].mean()) - middle
        moved.append(replace(hand, vertices_cam=hand.vertices_cam + shift, camera=first.camera))
    return moved


def camera_to_dict(camera: Camera) -> dict[str, Any]:
    """A camera as data, with the formula it stands for."""
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
