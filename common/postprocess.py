"""From the frames of the network to the crop: the results of inference."""

from typing import NamedTuple

import torch
from torch import Tensor

from common.types import RIGHT, Prediction
from common.utils.affine import apply_affine, invert_affine
from common.utils.boxes import restore_box
from common.utils.frames import Frames, rescale


class CropResult(NamedTuple):
    """Both hands of N crops. The cameras are orthographic: pixel in `crop` = metres * focal + princpt."""

    boxes_body: Tensor  # (N, 2, 4) xyxy, without the extension
    joints_crop: Tensor  # (N, 2, J, 3) x, y px; z in depth bins of `hand_hm`
    joints_proj_crop: Tensor  # (N, 2, J, 2) px, MANO joints projected by the virtual camera
    hand_focal_crop: Tensor  # (N, 2, 2) each hand's own camera, hand at its root_transl
    hand_princpt_crop: Tensor  # (N, 2, 2)
    pair_transl: Tensor  # (N, 2, 3) m, wrists of the pair: the right root_transl, and that + rel_transl
    pair_focal_crop: Tensor  # (N, 2) one camera for the pair
    pair_princpt_crop: Tensor  # (N, 2)


def fit_camera(joints_cam: Tensor, joints_crop: Tensor) -> tuple[Tensor, Tensor]:
    """The orthographic camera that maps metric joints to their projections.

    f = (max P - min P) / (max J - min J), c = mean(P) - mean(f J), for x and y each, as published.

    Args:
        joints_cam: (..., P, 3) m.
        joints_crop: (..., P, 2) px.

    Returns:
        focal (..., 2) px per metre, princpt (..., 2) px. Infinite where all joints have the same x or y.
    """
    joints = joints_cam[..., :2]
    focal = (joints_crop.amax(-2) - joints_crop.amin(-2)) / (joints.amax(-2) - joints.amin(-2))
    return focal, joints_crop.mean(-2) - (joints * focal[..., None, :]).mean(-2)


def to_crop(prediction: Prediction, frames: Frames) -> CropResult:
    """Move the predictions of N crops to the frame `crop`, and fit the cameras that project the hands there."""
    hand_to_crop = invert_affine(prediction.crop_to_hand)

    def hand_hm_to_crop(points_hand_hm: Tensor) -> Tensor:
        return apply_affine(hand_to_crop, rescale(points_hand_hm, frames.hand_hm, frames.hand))

    joints_proj_crop = hand_hm_to_crop(prediction.joints_proj_hand_hm)
    joints_cam = prediction.joints_rel + prediction.root_transl[:, :, None]
    hand_focal, hand_princpt = fit_camera(joints_cam, joints_proj_crop)

    right_transl = prediction.root_transl[:, RIGHT]
    pair_transl = torch.stack((right_transl, right_transl + prediction.rel_transl), 1)
    pair_cam = prediction.joints_rel + pair_transl[:, :, None]
    pair_focal, pair_princpt = fit_camera(pair_cam.flatten(1, 2), joints_proj_crop.flatten(1, 2))

    return CropResult(
        boxes_body=restore_box(
            prediction.box_centers_body_hm, prediction.box_sizes_body_hm, frames, aspect=None, extension=1.0
        ),
        joints_crop=hand_hm_to_crop(prediction.joints_hand_hm),
        joints_proj_crop=joints_proj_crop,
        hand_focal_crop=hand_focal,
        hand_princpt_crop=hand_princpt,
        pair_transl=pair_transl,
        pair_focal_crop=pair_focal,
        pair_princpt_crop=pair_princpt,
    )
