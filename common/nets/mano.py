"""TwoHandMano: both hands' MANO layers as one differentiable module on smplx's building blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from smplx.lbs import batch_rodrigues, blend_shapes, vertices2joints
from torch import Tensor, nn

from common.nets.mano_files import HandModel
from common.precision import full_precision
from common.types import RIGHT, ManoParams
from common.utils.joints import FINGERTIP_VERTICES, JOINTS, MANO_JOINTS, WRIST


class TwoHandMano(nn.Module):
    """MANO parameters of both hands -> vertices and the 21 joints.

    All arrays are non-persistent buffers: they follow the module's device and never enter a checkpoint.

    Args:
        right, left: the hand models, see `common.nets.mano_files.read_hand_models`.

    Raises:
        ValueError: the two hands have different joint trees.
    """

    faces: Tensor  # (2, F, 3) int64
    template: Tensor  # (2, 3, V) m, the vertices at rest
    blend_directions: Tensor  # (2, 3, V, 10 + 135): of the betas, then of the pose
    rest_joints: Tensor  # (2, 16, 3) m, of the template
    joint_directions: Tensor  # (2, 16, 3, 10): how the betas move them
    weights: Tensor  # (2, 16, V), skinning
    hands_mean: Tensor  # (2, 15, 3)
    joint_regressor: Tensor  # (21, V)

    def __init__(self, right: HandModel, left: HandModel) -> None:
        super().__init__()
        self.name = right.name
        self.parents: tuple[int, ...] = tuple(right.parents.tolist())
        if (right.parents != left.parents).any():
            raise ValueError("the two hands have different joint trees")

        def both(name: str) -> Tensor:
            return torch.stack([torch.from_numpy(getattr(hand, name)).float() for hand in (right, left)])

        v_template, shapedirs, regressors = both("v_template"), both("shapedirs"), both("J_regressor")
        directions = torch.cat((shapedirs, both("posedirs")), -1)
        buffers = {
            "faces": torch.stack([torch.from_numpy(hand.faces) for hand in (right, left)]),
            # Axes before vertices: elementwise operations then run over all vertices at once, not over 3 numbers.
            "template": v_template.transpose(1, 2).contiguous(),
            "blend_directions": directions.transpose(1, 2).contiguous(),
            # Regression is linear: regressed shape directions make that of every shaped hand unnecessary.
            "rest_joints": torch.cat(
                [vertices2joints(*hand) for hand in zip(regressors, v_template[:, None], strict=True)]
            ),
            "joint_directions": torch.stack(
                [
                    vertices2joints(regressor, shapes.permute(2, 0, 1)).permute(1, 2, 0)
                    for regressor, shapes in zip(regressors, shapedirs, strict=True)
                ]
            ),
            "weights": both("weights").transpose(1, 2).contiguous(),
            "hands_mean": both("hands_mean").view(2, 15, 3),
            "joint_regressor": _joint_regressor(regressors[RIGHT]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def regress_joints(self, vertices: Tensor) -> Tensor:
        """(..., V, 3) -> (..., 21, 3), the joints of posed vertices."""
        return F.linear(vertices.transpose(-1, -2), self.joint_regressor).transpose(-1, -2)

    def regress_wrist(self, vertices: Tensor) -> Tensor:
        """(..., V, 3) -> (..., 3), the first of these joints."""
        return self.joint_regressor[WRIST] @ vertices

    @full_precision
    def forward(self, params: ManoParams) -> tuple[Tensor, Tensor]:
        """Skin both hands.

        Args:
            params: batch shape (N,), axis-angle, without the mean pose (which is added here).

        Returns:
            vertices (N, 2, V, 3), joints (N, 2, 21, 3): m. The pose turns about the wrist joint of the shaped
            template, so the wrist is not at the origin. Always float32, also under autocast.
        """
        betas, pose = params.betas, params.hand_pose + self.hands_mean
        pose = torch.cat((params.global_orient[:, :, None], pose), 2)
        hands = range(2)
        # No Python number of samples anywhere: export keeps their number free.
        rotations = batch_rodrigues(pose.reshape(-1, 3)).view(-1, 2, 16, 3, 3)

        pose_features = (rotations[:, :, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)).flatten(2)
        features = torch.cat((betas, pose_features), -1)
        offsets = [blend_shapes(features[:, hand], self.blend_directions[hand]) for hand in hands]
        posed = torch.stack([self.template[hand] + offsets[hand] for hand in hands])  # (2, N, 3, V)

        joint_offsets = [blend_shapes(betas[:, hand], self.joint_directions[hand]) for hand in hands]
        rest_joints = self.rest_joints + torch.stack(joint_offsets, 1)
        transforms = forward_kinematics(rotations.flatten(0, 1), rest_joints.flatten(0, 1), self.parents)

        # Each vertex has its own transform, a weighted mean of those of the joints.
        rows = transforms[:, :, :3].unflatten(0, (-1, 2)).permute(1, 0, 3, 4, 2)  # (2, N, 3, 4, 16)
        skinning = (rows.flatten(1, 3) @ self.weights).unflatten(1, (-1, 3, 4))
        vertices = skinning[:, :, :, 3].clone()
        for axis in range(3):
            vertices.addcmul_(skinning[:, :, :, axis], posed[:, :, None, axis])
        vertices = vertices.transpose(-1, -2)  # (2, N, V, 3)
        joints = self.regress_joints(vertices)
        return vertices.transpose(0, 1).contiguous(), joints.transpose(0, 1).contiguous()


def _joint_regressor(mano_regressor: Tensor) -> Tensor:
    """(16, V) -> (21, V): MANO's joints in our order and the 5 fingertip vertices. The right hand's serves both hands,
    as in the published system."""
    regressor = torch.zeros(len(JOINTS), mano_regressor.shape[1])
    for index, name in enumerate(JOINTS):
        if name in FINGERTIP_VERTICES:
            regressor[index, FINGERTIP_VERTICES[name]] = 1
        else:
            regressor[index] = mano_regressor[MANO_JOINTS.index(name)]
    return regressor


def forward_kinematics(rotations: Tensor, rest_joints: Tensor, parents: Sequence[int]) -> Tensor:
    """The transforms of the joints from rest to pose, which linear blend skinning mixes.

    The same numbers as `smplx.lbs.batch_rigid_transform`. With the parents as Python ints nothing is copied between
    host and device, and `torch.compile` captures one graph.

    Args:
        rotations: (M, J, 3, 3), each relative to its parent.
        rest_joints: (M, J, 3) m.
        parents: of the J joints, -1 for the root, which is first; a parent comes before its children.

    Returns:
        (M, J, 4, 4).
    """
    joints = rest_joints.unbind(1)
    bones = [joints[0], *(joints[joint] - joints[parent] for joint, parent in enumerate(parents[1:], 1))]
    translations = F.pad(torch.stack(bones, 1)[..., None], (0, 0, 0, 1), value=1)
    local = torch.cat((F.pad(rotations, (0, 0, 0, 1)), translations), -1).unbind(1)
    chain = [local[0]]
    for joint, parent in enumerate(parents[1:], 1):
        chain.append(chain[parent] @ local[joint])
    world = torch.stack(chain, 1)
    rest_in_world = world @ F.pad(rest_joints[..., None], (0, 0, 0, 1))
    return world - F.pad(rest_in_world, (3, 0))


def to_wrist(vertices: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """(..., V, 3), (..., J, 3) -> the same relative to their own wrist joint."""
    wrist = joints[..., WRIST : WRIST + 1, :]
    return vertices - wrist, joints - wrist
