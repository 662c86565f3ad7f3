"""The data types of the project. Read this first.

Shapes: N images, 2 hands (right 0, left 1), J = 21 joints per hand, V = 778 vertices per hand.
The end of a coordinate's name is its frame; the frames are listed in `common/utils/frames.py`.
Units are meters and radians, axes x right, y down, z away from the camera.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from common.utils.camera import CaptureCamera

RIGHT, LEFT = 0, 1
SIDES = ("right", "left")
Array: TypeAlias = Any  # a tensor; a numpy array where the holder says so


class ManoParams(NamedTuple):
    """MANO parameters of both hands, rotations as axis-angle in radians, without the mean pose.

    `...` is any batch shape, N for the network.
    """

    global_orient: Array  # (..., 2, 3)
    hand_pose: Array  # (..., 2, 15, 3)
    betas: Array  # (..., 2, 10)


class Parameters(NamedTuple):
    """What the network computes for N crops before the hand model: the outputs of an exported network.

    The left hand is a left hand: nothing here is mirrored.
    """

    box_centers_body_hm: Tensor  # (N, 2, 2) x, y
    box_sizes_body_hm: Tensor  # (N, 2, 2) w, h; unbounded, may be negative
    box_scores: Tensor  # (N, 2) in [0, 1]
    crop_to_hand: Tensor  # (N, 2, 2, 3) affine, no gradient
    joints_hand_hm: Tensor  # (N, 2, J, 3) 2.5D joints: x, y in cells, z in root-relative depth bins
    mano: ManoParams
    root_transl: Tensor  # (N, 2, 3) m, wrist in the hand's own virtual camera
    rel_transl: Tensor  # (N, 3) m, left wrist - right wrist


class Prediction(NamedTuple):
    """What the network predicts for N crops: `Parameters`, and the meshes that they pose."""

    box_centers_body_hm: Tensor
    box_sizes_body_hm: Tensor
    box_scores: Tensor
    crop_to_hand: Tensor
    joints_hand_hm: Tensor
    mano: ManoParams
    vertices_rel: Tensor  # (N, 2, V, 3) m, own wrist at the origin
    joints_rel: Tensor  # (N, 2, J, 3) m, own wrist at the origin
    joints_proj_hand_hm: Tensor  # (N, 2, J, 2) MANO joints projected by the virtual camera
    root_transl: Tensor
    rel_transl: Tensor


# ---- Annotations, and the targets and ground truth made of them ----

HAND_TYPES = ("right", "left", "interacting")


@dataclass(frozen=True)
class Annotation:
    """What a dataset has for one image, in numpy, before any augmentation. Hands: right 0, left 1.

    Parts that a dataset does not have are None. The `*_valid` flag of a missing hand is False, and its numbers are
    undefined.
    """

    id: int | tuple  # the dataset's own: an annotation id, or (capture, camera, frame)
    image_path: Path
    image_size: tuple[int, int]  # (h, w)
    hand_type: str | None = None  # of HAND_TYPES
    # (4,) xywh of the person; None: the whole image. Integers and floats give different crops, see `body_box`.
    body_box_image: np.ndarray | None = None

    boxes_image: np.ndarray | None = None  # (2, 4) xyxy
    boxes_valid: np.ndarray | None = None  # (2,) bool

    joints_image: np.ndarray | None = None  # (2, J, 2) px
    joints_cam: np.ndarray | None = None  # (2, J, 3) m; None: the annotation is 2D
    joints_valid: np.ndarray | None = None  # (2, J) bool, what training uses
    joints_scored: np.ndarray | None = None  # (2, J) bool, what the evaluation scores
    rel_transl_valid: bool = False  # of left wrist - right wrist in `joints_cam`

    mano: ManoParams | None = None  # numpy arrays (2, ...), world axes where the cameras have a rotation
    mano_transl: np.ndarray | None = None  # (2, 3) m
    mano_valid: np.ndarray | None = None  # (2,) bool
    cameras: tuple[CaptureCamera, CaptureCamera] | None = None  # of the right and the left hand's mesh

    vertices_cam: np.ndarray | None = None  # (2, V, 3) m, if the ground truth is a mesh instead of parameters
    vertices_valid: np.ndarray | None = None  # (2,) bool


class HandCameras(NamedTuple):
    """The cameras of MANO annotations as tensors. `...` is any batch shape."""

    rotation: Tensor  # (..., 3, 3) world -> cam; the identity if there is none
    transl: Tensor  # (..., 3) m, X_cam = R X_world + t
    has_extrinsics: Tensor  # (...) bool; False: the annotation is already in `cam`
    focal: Tensor  # (..., 2, 2) px of `image`, per hand
    princpt: Tensor  # (..., 2, 2) px of `image`, per hand
    distortion: Tensor  # (..., 4) fisheye coefficients
    has_distortion: Tensor  # (...) bool


class Sample(NamedTuple):
    """What a loader worker makes of one annotation and one augmentation: everything that needs no MANO model.

    If `flip` is set, `image` is the mirrored image here. `common.targets` completes it, for a whole batch and on any
    device.
    """

    crop: Tensor  # (..., h, w, 3) RGB in [0, 255] before the color factors; uint8, or float32 for a test
    color: Tensor  # (..., 3) color factors
    id: str | list[str]  # "MSCOCO 4000", for messages
    replaced: Tensor  # (...) int64: how many unusable annotations this one replaces
    flip: Tensor  # (...) bool
    rot: Tensor  # (...) radians
    image_width: Tensor  # (...) px
    image_to_crop: Tensor  # (..., 2, 3)
    crop_to_image: Tensor  # (..., 2, 3) its inverse

    # Finished targets, as in `Targets`.
    boxes_crop: Tensor
    boxes_valid: Tensor
    joints_crop: Tensor
    joints_inside: Tensor
    joints_rel: Tensor
    joints_valid: Tensor
    rel_transl: Tensor
    rel_transl_valid: Tensor
    has_depth: Tensor

    # As annotated, before flip and rotation.
    mano: ManoParams
    mano_transl: Tensor  # (..., 2, 3) m
    mano_valid: Tensor  # (..., 2) bool
    cameras: HandCameras


class Targets(NamedTuple):
    """What the criterion compares a prediction with. All flags are float32, 1 or 0.

    A 2.5D joint is x, y in pixels of `crop`, and the depth in m relative to the hand's own wrist.
    """

    boxes_crop: Tensor  # (N, 2, 4) xyxy; the first cell of `body_hm` for a missing box
    boxes_valid: Tensor  # (N, 2)
    joints_crop: Tensor  # (N, 2, J, 3) 2.5D joints
    joints_inside: Tensor  # (N, 2, J) annotated, and inside the crop and the depth range
    joints_rel: Tensor  # (N, 2, J, 3) m
    joints_valid: Tensor  # (N, 2, J)
    mano: ManoParams  # (N, 2, ...), camera axes
    mano_valid: Tensor  # (N, 2)
    mano_joints_crop: Tensor  # (N, 2, J, 3) 2.5D joints of the MANO fit
    mano_joints_inside: Tensor  # (N, 2, J)
    vertices_rel: Tensor  # (N, 2, V, 3) m
    rel_transl: Tensor  # (N, 3) m, left wrist - right wrist
    rel_transl_valid: Tensor  # (N,)
    has_depth: Tensor  # (N,) the annotation is 3D


class GroundTruth(NamedTuple):
    """The ground truth of a test, before cropping, mirroring and rotation. Flags are float32, 1 or 0."""

    boxes_image: Tensor  # (N, 2, 4) xyxy
    boxes_valid: Tensor  # (N, 2)
    joints_cam: Tensor  # (N, 2, J, 3) m
    joints_scored: Tensor  # (N, 2, J) the evaluation scores this joint
    vertices_cam: Tensor  # (N, 2, V, 3) m; zeros for a missing mesh
    vertices_valid: Tensor  # (N, 2)
    rel_transl: Tensor  # (N, 3) m, left wrist - right wrist
    rel_transl_valid: Tensor  # (N,)
    hand_type: Tensor  # (N,) int64, index into HAND_TYPES


class EvalSample(NamedTuple):
    """One sample of a test set. `common.targets.complete_truth` completes `truth.vertices_cam`."""

    sample: Sample
    truth: GroundTruth


def take(batch: Any, items: slice) -> Any:
    """Some samples of a batch of nested named tuples: each tensor and list sliced along its first axis."""
    if hasattr(batch, "_fields"):
        return type(batch)(*(take(part, items) for part in batch))
    return batch[items]
