"""InterWild: the network, step by step: what the checkpoint computes, then the meshes of the hand model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.nets.box_net import BoxNet
from common.nets.hand_roi import HandRoI
from common.nets.mano import TwoHandMano, to_wrist
from common.nets.position_net import PositionNet
from common.nets.resnet import ResNetBackbone
from common.nets.rotation_net import RotationNet
from common.nets.trans_net import TransNet
from common.types import ManoParams, Parameters, Prediction
from common.utils.boxes import restore_box
from common.utils.frames import Frames, rescale
from common.utils.joints import JOINTS
from common.utils.mirror import mirror_points, mirror_rotation, mirror_translation

PROJECTION_EPSILON = 1e-4  # m, added to the depth before the virtual projection divides by it, as published


class InterWild(nn.Module):
    """A person crop in, two hands in 3D out.

    Moon, "Bringing Inputs to Shared Domains for 3D Interacting Hands Recovery in the Wild", CVPR 2023. The names and
    shapes of the saved tensors are those of the published files (without their `module.`).

    Args:
        mano: both hands' MANO layers; None where only the weights matter.
        frames: sizes of all frames.
        body_backbone, hand_backbone, trans_backbone: backbone names.
        box_channels: width of the box detector's head.
        hand_box_extension: factor on the predicted hand box before it is cropped.
    """

    def __init__(
        self,
        mano: TwoHandMano | None,
        frames: Frames,
        body_backbone: str,
        hand_backbone: str,
        trans_backbone: str,
        box_channels: int,
        hand_box_extension: float,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.hand_box_extension = hand_box_extension
        self.body_backbone = ResNetBackbone(body_backbone)
        self.body_box_net = BoxNet(self.body_backbone.channels, box_channels)
        self.hand_roi_net = HandRoI(hand_backbone, frames)
        hand_channels = self.hand_roi_net.backbone.channels
        self.hand_position_net = PositionNet(hand_channels, len(JOINTS), frames.hand_bins)
        self.hand_rotation_net = RotationNet(hand_channels, len(JOINTS), frames)
        self.hand_trans_net = TransNet(trans_backbone, len(JOINTS), frames)
        if mano is not None:
            self.mano_layer = mano  # its buffers are not saved

    def forward(self, image_crop: Tensor) -> Prediction:
        """(N, 3, H, W) RGB in [0, 1], no mean or deviation subtracted -> `Prediction`."""
        return pose_meshes(self.predict_parameters(image_crop), self.mano_layer, self.frames)

    def predict_parameters(self, image_crop: Tensor) -> Parameters:
        """The step that needs the checkpoint and no hand model: (N, 3, H, W) as in `forward` -> `Parameters`."""
        frames = self.frames

        # Find both hands.
        image_body = nn.functional.interpolate(image_crop, frames.body, mode="bilinear", align_corners=False)
        centers, sizes, scores = self.body_box_net(self.body_backbone(image_body))
        boxes_body = restore_box(centers, sizes, frames, aspect=1.0, extension=self.hand_box_extension)

        # Both as right hands: joints, then rotations from the features at the joints.
        features, crop_to_hand = self.hand_roi_net(image_crop, boxes_body)
        joints = self.hand_position_net(features)
        global_orient, hand_pose, betas, root_transl = self.hand_rotation_net(features, joints.detach())

        # Mirror the left one back to a left hand.
        joints_hand_hm = unmirror_left(joints, self.mirror_joints)
        mano = ManoParams(
            global_orient=unmirror_left(global_orient, mirror_rotation),
            hand_pose=unmirror_left(hand_pose, mirror_rotation),
            betas=betas.unflatten(0, (-1, 2)),
        )

        # The left hand's position relative to the right.
        rel_transl = self.hand_trans_net(joints_hand_hm.detach(), crop_to_hand)

        return Parameters(
            box_centers_body_hm=centers,
            box_sizes_body_hm=sizes,
            box_scores=scores,
            crop_to_hand=crop_to_hand,
            joints_hand_hm=joints_hand_hm,
            mano=mano,
            root_transl=unmirror_left(root_transl, mirror_translation),
            rel_transl=rel_transl,
        )

    def mirror_joints(self, joints_hand_hm: Tensor) -> Tensor:
        """(..., J, 3) in `hand_hm`, mirrored. Computed in pixels of `hand`, as published: x becomes 8 - 1 / 32 - x
        cells."""
        joints_hand = rescale(joints_hand_hm, self.frames.hand_hm, self.frames.hand)
        return rescale(mirror_points(joints_hand, self.frames.hand[1]), self.frames.hand, self.frames.hand_hm)


def pose_meshes(parameters: Parameters, mano: TwoHandMano, frames: Frames) -> Prediction:
    """The step that needs the hand models and no checkpoint: both meshes, relative to their wrists and projected."""
    vertices_rel, joints_rel = to_wrist(*mano(parameters.mano))
    joints_cam = joints_rel + parameters.root_transl[:, :, None]
    # PyTorch 2.6 cannot compile `_asdict` into its graph.
    named: dict[str, Any] = dict(zip(Parameters._fields, parameters, strict=True))
    return Prediction(
        **named,
        vertices_rel=vertices_rel,
        joints_rel=joints_rel,
        joints_proj_hand_hm=project_to_hand_hm(joints_cam, frames),
    )


def project_to_hand_hm(points_cam: Tensor, frames: Frames) -> Tensor:
    """(..., 3) m in a hand's virtual camera -> (..., 2) in `hand_hm`."""
    depth = points_cam[..., 2:] + PROJECTION_EPSILON
    centered = points_cam[..., :2] / depth * frames.focal
    points_hand = torch.stack([centered[..., axis] + frames.princpt[axis] for axis in (0, 1)], -1)
    return rescale(points_hand, frames.hand, frames.hand_hm)


def unmirror_left(x: Tensor, mirror: Callable[[Tensor], Tensor]) -> Tensor:
    """The hand networks' outputs, all as right hands, (N * 2, ...) -> (N, 2, ...), the left ones mirrored back."""
    right, left = x.unflatten(0, (-1, 2)).unbind(1)
    return torch.stack((right, mirror(left)), 1)
