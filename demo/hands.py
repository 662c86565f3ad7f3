"""What the demo reports of a person: both hands, where they are, and whose they are."""

from dataclasses import dataclass

import numpy as np

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

    @property
    def hands(self) -> list[Hand]:
        """The hands that were not dropped, right first."""
        return [hand for hand in (self.right, self.left) if hand is not None]


@dataclass(frozen=True)
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
