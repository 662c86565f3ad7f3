"""The nouns of the project. Read this first.

Shape legend: N images, 2 hands (right 0, left 1), J = 21 joints a hand, V = 778 vertices a hand.
A coordinate's frame is the end of its name; the frames are listed in `common/utils/frames.py`.
Everything is in metres and radians, axes x right, y down, z away from the camera.
"""

from typing import NamedTuple

from torch import Tensor

RIGHT, LEFT = 0, 1
SIDES = ("right", "left")


class ManoParams(NamedTuple):
    """MANO parameters of both hands, rotations as axis-angle in radians, without the mean pose.

    `...` is any batch shape, N for the network.
    """

    global_orient: Tensor  # (..., 2, 3)
    hand_pose: Tensor  # (..., 2, 15, 3)
    betas: Tensor  # (..., 2, 10)


class Prediction(NamedTuple):
    """What the network says of N crops. A left hand is reported as a left hand: nothing here is mirrored."""

    box_centers_body_hm: Tensor  # (N, 2, 2) x, y
    box_sizes_body_hm: Tensor  # (N, 2, 2) w, h; unbounded, may be negative
    box_scores: Tensor  # (N, 2) in [0, 1]
    crop_to_hand: Tensor  # (N, 2, 2, 3) affine, no gradient
    joints_hand_hm: Tensor  # (N, 2, J, 3) 2.5D joints: x, y in cells, z in root-relative depth bins
    mano: ManoParams
    vertices_rel: Tensor  # (N, 2, V, 3) m, own wrist at the origin
    joints_rel: Tensor  # (N, 2, J, 3) m, own wrist at the origin
    joints_proj_hand_hm: Tensor  # (N, 2, J, 2) MANO joints seen by the virtual camera
    root_transl: Tensor  # (N, 2, 3) m, wrist in the hand's own virtual camera
    rel_transl: Tensor  # (N, 3) m, left wrist - right wrist
