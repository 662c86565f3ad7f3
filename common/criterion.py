"""The losses: a prediction and its targets -> one number per term, under the published names.

| term                         | unit              | computed where                                                 |
|------------------------------|-------------------|----------------------------------------------------------------|
| {r,l}hand_bbox_center, _size | cells, `body_hm`  | the box is valid                                               |
| rel_trans                    | m                 | both wrists are valid                                          |
| mano_pose                    | rotation matrices | the hand has a MANO fit                                        |
| mano_shape                   |                   | the hand has a MANO fit                                        |
| joint_cam                    | 10 cm             | the joint is valid and the annotation is 3D                    |
| mano_mesh_cam                | 10 cm             | the hand has a MANO fit                                        |
| joint_img                    | cells, `hand_hm`  | inside crop and predicted hand crop; z only if annotated in 3D |
| mano_joint_img               | cells, `hand_hm`  | the same of the fit's joints; z always                         |
| joint_proj                   | cells, `hand_hm`  | as joint_img                                                   |

Every term is the mean of absolute differences over all elements; masked elements enter the mean as zeros. The total is
the sum of the terms.
"""

import torch
from torch import Tensor

from common.precision import full_precision
from common.types import ManoParams, Prediction, Targets
from common.utils.affine import apply_affine
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import depth_to_bin
from common.utils.rotations import axis_angle_to_matrix

METRIC_WEIGHT = 10.0  # of the terms in m: it makes their unit 10 cm
SIDE_LETTERS = ("r", "l")  # of hands 0 and 1, in the names of the terms


class InterWildLoss:
    """The published losses. Without parameters; the inputs are not modified.

    Args:
        frames: sizes of the frames.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def __call__(self, prediction: Prediction, targets: Targets) -> dict[str, Tensor]:
        """The terms in the published order, each () float32; the total loss is the sum of the values.

        The mean of the terms of several processes with equal batches is that of the global batch.
        """
        return {name: values.mean() for name, values in self.elementwise(prediction, targets).items()}

    @full_precision
    def elementwise(self, prediction: Prediction, targets: Targets) -> dict[str, Tensor]:
        """The terms before the mean, (N, ...) float32, weighted, 0 where an element is masked."""
        terms = self._box_terms(prediction, targets)
        terms["rel_trans"] = (prediction.rel_transl - targets.rel_transl).abs() * targets.rel_transl_valid[:, None]
        terms |= _mano_terms(prediction.mano, targets)

        joints_mask = targets.joints_valid * targets.has_depth[:, None, None]
        joints = (prediction.joints_rel - targets.joints_rel).abs() * joints_mask[..., None]
        vertices = (prediction.vertices_rel - targets.vertices_rel).abs() * targets.mano_valid[:, :, None, None]
        terms["joint_cam"], terms["mano_mesh_cam"] = joints * METRIC_WEIGHT, vertices * METRIC_WEIGHT
        return terms | self._heatmap_terms(prediction, targets)

    def nonfinite(self, prediction: Prediction, targets: Targets) -> dict[str, list[int]]:
        """Term -> the samples of the batch that make it NaN or infinite; finite terms are left out."""
        found = {}
        for name, values in self.elementwise(prediction, targets).items():
            bad = ~values.detach().isfinite().flatten(1).all(1)
            if bad.any():
                found[name] = bad.nonzero()[:, 0].tolist()
        return found

    def _box_terms(self, prediction: Prediction, targets: Targets) -> dict[str, Tensor]:
        corners = rescale(targets.boxes_crop.unflatten(-1, (2, 2)), self.frames.crop, self.frames.body_hm)
        valid = targets.boxes_valid[..., None]
        centers = (prediction.box_centers_body_hm - corners.mean(2)).abs() * valid
        sizes = (prediction.box_sizes_body_hm - (corners[:, :, 1] - corners[:, :, 0])).abs() * valid
        terms = {}
        for hand, side in enumerate(SIDE_LETTERS):
            terms[f"{side}hand_bbox_center"], terms[f"{side}hand_bbox_size"] = centers[:, hand], sizes[:, hand]
        return terms

    def _heatmap_terms(self, prediction: Prediction, targets: Targets) -> dict[str, Tensor]:
        crop_to_hand = prediction.crop_to_hand
        joints, inside = self.to_hand_hm(targets.joints_crop, targets.joints_inside, crop_to_hand)
        mano_joints, mano_inside = self.to_hand_hm(targets.mano_joints_crop, targets.mano_joints_inside, crop_to_hand)
        # A 2D annotation has no depth; its MANO fit has.
        depth_mask = torch.ones_like(joints)
        depth_mask[..., 2] = targets.has_depth[:, None, None]
        predicted = prediction.joints_hand_hm
        return {
            "joint_img": (predicted - joints).abs() * inside[..., None] * depth_mask,
            "mano_joint_img": (predicted - mano_joints).abs() * mano_inside[..., None],
            "joint_proj": (prediction.joints_proj_hand_hm - joints[..., :2]).abs() * inside[..., None],
        }

    def to_hand_hm(self, joints_crop: Tensor, inside: Tensor, crop_to_hand: Tensor) -> tuple[Tensor, Tensor]:
        """2.5D targets in the predicted hand crops.

        Args:
            joints_crop: (N, 2, J, 3) x, y px of `crop`, depth in m.
            inside: (N, 2, J) float, inside the crop.
            crop_to_hand: (N, 2, 2, 3), as predicted, the left not mirrored.

        Returns:
            (N, 2, J, 3) in cells and bins of `hand_hm`; (N, 2, J): `inside`, and also inside the hand crop.
        """
        frames = self.frames
        joints_hand = apply_affine(crop_to_hand, joints_crop)
        xy = rescale(joints_hand[..., :2], frames.hand, frames.hand_hm)
        depth = depth_to_bin(joints_crop[..., 2:], frames.hand_bins, frames.depth_range)
        (height, width), (x, y) = frames.hand_hm, xy.unbind(-1)
        within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return torch.cat((xy, depth), -1), inside * within


def _mano_terms(predicted: ManoParams, targets: Targets) -> dict[str, Tensor]:
    """Rotations are compared as matrices: an axis-angle vector is not unique."""
    valid = targets.mano_valid[:, :, None]

    def matrices(params: ManoParams) -> Tensor:  # (N, 2, 16, 3, 3)
        return axis_angle_to_matrix(torch.cat((params.global_orient[:, :, None], params.hand_pose), 2))

    pose = (matrices(predicted) - matrices(targets.mano)).abs() * valid[..., None, None]
    return {"mano_pose": pose, "mano_shape": (predicted.betas - targets.mano.betas).abs() * valid}
