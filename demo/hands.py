"""What the demo reports of a person: both hands, where they are, and whose they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.export import glb, merge_into_shared_camera
from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.options import MESH_FORMATS
from common.types import SIDES
from common.utils.camera import Camera


@dataclass(frozen=True)
class Hand:
    """One hand in one photo. Arrays are float32; pixels are those of the upright photo.

    Attributes:
        side: "right" or "left", the person's.
        confidence: the detector's, 0 to 1.
        box_image: (4,) xyxy px.
        joints_image: (21, 2) px, the 2D skeleton.
        joints_depth_rel: (21,) m, depth of the 2D skeleton's joints relative to the wrist.
        vertices_cam: (778, 3) m, the mesh, placed so that `project(vertices_cam, camera)` is the overlay.
        joints_cam: (21, 3) m, the joints of the mesh.
        camera: projects them to px. Orthographic and virtual unless real intrinsics were given. The hands of a pair
            share one camera and one space; otherwise each hand has its own.
        global_orient: (3,) axis-angle rad; hand_pose: (15, 3); betas: (10,).
        faces: (1538, 3) vertex indices of the mesh's triangles.
    """

    side: str
    confidence: float
    box_image: np.ndarray
    joints_image: np.ndarray
    joints_depth_rel: np.ndarray
    vertices_cam: np.ndarray
    joints_cam: np.ndarray
    camera: Camera
    global_orient: np.ndarray
    hand_pose: np.ndarray
    betas: np.ndarray
    faces: np.ndarray

    def __repr__(self) -> str:
        return f"Hand({self.side}, confidence {self.confidence:.3g}, {len(self.vertices_cam)} vertices)"


@dataclass(frozen=True)
class PhotoHands:
    """Both hands of one person in one photo.

    Attributes:
        image_size: (h, w) px.
        body_box_image: (4,) x, y, w, h px, what the network's input shows.
        right, left: the hands; None if dropped.
        dropped: side -> why this hand was dropped.
        confidences: (2,), of both hands, dropped or not.
        boxes_image: (2, 4) xyxy px, likewise.
        box_iou: IoU of the two boxes, 0 to 1.
        pair: whether both hands are placed together, in one camera.
        rel_transl: (3,) m, left wrist - right wrist.
        metric: whether real intrinsics place the hands; otherwise depth and size are the virtual camera's.
        image: (H, W, 3) uint8 RGB, the photo, if `HandPredictor` was called on it; `predict` does not keep it.
        writer: likewise, what `save` calls.
    """

    image_size: tuple[int, int]
    body_box_image: np.ndarray
    right: Hand | None
    left: Hand | None
    dropped: dict[str, str]
    confidences: np.ndarray
    boxes_image: np.ndarray
    box_iou: float
    pair: bool
    rel_transl: np.ndarray
    metric: bool
    image: np.ndarray | None = field(default=None, kw_only=True)
    writer: Callable[..., Any] | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        height, width = self.image_size
        hands = [repr(hand) for hand in self.hands] + [f"{side} left out: {why}" for side, why in self.dropped.items()]
        camera = "metric" if self.metric else "virtual"
        return f"{type(self).__name__}({width} x {height} px, {camera} camera; {'; '.join(hands)})"

    def meshes(self) -> list[HandMesh]:
        """The hands' meshes, each before its own camera."""
        return [HandMesh(hand.vertices_cam, hand.faces, SIDES.index(hand.side), hand.camera) for hand in self.hands]

    def draw(self, image: np.ndarray | None = None, renderer: str = "auto") -> np.ndarray:
        """The meshes over the photo, as the demo's `NAME_mesh.jpg`: (H, W, 3) uint8 RGB.

        Args:
            image: the upright photo, where `image` is not kept.
            renderer: see `common.drawing.render.render_hands`.

        Raises:
            ValueError: there is no image, or it has another size.
        """
        image = self.image if image is None else image
        if image is None or image.shape[:2] != self.image_size:
            raise ValueError("draw() needs the photo itself; give it as draw(image)")
        return render_hands(image, self.meshes(), renderer)

    def scene(self) -> bytes:
        """The hands as a GLB file, as the demo's `NAME.glb`. Raises ValueError if there is no hand."""
        return glb(merge_into_shared_camera(self.meshes()))

    def save(
        self,
        folder: str | Path,
        name: str | None = None,
        mesh_formats: Sequence[str] = MESH_FORMATS,
        html: bool = False,
        renderer: str = "auto",
    ) -> None:
        """Write the files that the demo writes for a photo; earlier files of this name are replaced.

        Args:
            folder: of the folders boxes, meshes, params, renders and results.
            name: of the files; default: the photo's file without its suffix, or "photo", and the person's number.
            mesh_formats: of obj, ply, glb.
            html: also write a page with the 3D result.
            renderer: see `common.drawing.render.render_hands`.

        Raises:
            ValueError: the photo is not kept, or an argument is none of these.
            UserError: the folder cannot be written to, or holds the results of another photo of this name.
        """
        if self.image is None or self.writer is None:
            raise ValueError("save() needs the photo itself: call the predictor on it, instead of predict()")
        self.writer(self, Path(folder), name, mesh_formats, html, renderer)

    @property
    def hands(self) -> list[Hand]:
        """The hands that were not dropped, right first."""
        return [hand for hand in (self.right, self.left) if hand is not None]


@dataclass(frozen=True, repr=False)
class PersonHands(PhotoHands):
    """Both hands of one of several people in a photo.

    Attributes:
        id: 1, 2, ... from left to right.
        source: "detector", "boxes" (given), or "photo": nobody was found, so the whole photo is one person.
        score: of the detector, 0 to 1; 1 where there is none.
        box_image: (4,) xyxy px, the person, cut to the photo.
    """

    id: int
    source: str
    score: float
    box_image: np.ndarray
