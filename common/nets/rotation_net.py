"""RotationNet: MANO parameters and wrist position of a hand, the left one mirrored."""

import torch
from torch import Tensor, nn

from common.nets.layers import conv_bn_relu, init_head
from common.precision import at_least_float32
from common.utils.frames import Frames
from common.utils.heatmaps import sample_features
from common.utils.rotations import matrix_to_axis_angle, rot6d_to_matrix


class RotationNet(nn.Module):
    """Hand features sampled at the joints -> rotations; pooled features -> shape and wrist position."""

    def __init__(self, in_channels: int, joints: int, frames: Frames, channels: int = 512) -> None:
        super().__init__()
        self.depth_scale = frames.depth_scale
        self.conv = conv_bn_relu(in_channels, channels, 1)
        self.root_pose_out = nn.Sequential(nn.Linear(joints * (channels + 3), 6))
        self.pose_out = nn.Sequential(nn.Linear(joints * (channels + 3), 15 * 6))
        self.shape_out = nn.Sequential(nn.Linear(in_channels, 10))
        self.cam_out = nn.Sequential(nn.Linear(in_channels, 3))
        init_head(self)

    @torch.no_grad()
    def init_identity(self) -> None:
        """Set the biases of the rotation heads to the identity in 6D, so that each joint starts near the rest pose.

        The published biases are 0: a joint then starts at a random rotation, and the L1 loss can keep it half a turn
        away from its target (docs/reproducing.md).
        """
        for head in (self.root_pose_out, self.pose_out):
            bias = head.get_parameter("0.bias")
            bias.copy_(bias.new_tensor([1.0, 0, 0, 0, 1, 0]).repeat(len(bias) // 6))

    def forward(self, hand_features: Tensor, joints_hand_hm: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(M, C, H, W), detached joints (M, J, 3) -> global_orient (M, 3), hand_pose (M, 15, 3) axis-angle,
        betas (M, 10), root_transl (M, 3) m in the virtual camera."""
        pooled = hand_features.mean((2, 3))
        betas, camera = at_least_float32(self.shape_out(pooled)), at_least_float32(self.cam_out(pooled))
        root_transl = torch.cat((camera[:, :2], self.depth_scale * camera[:, 2:].sigmoid()), -1)

        at_joints = sample_features(self.conv(hand_features), joints_hand_hm[..., :2])
        tokens = torch.cat((at_joints, joints_hand_hm), -1).flatten(1)
        rot6d = torch.cat((self.root_pose_out(tokens), self.pose_out(tokens)), -1)
        rotations = matrix_to_axis_angle(rot6d_to_matrix(rot6d.unflatten(-1, (16, 6))))
        return rotations[:, 0], rotations[:, 1:], betas, root_transl
