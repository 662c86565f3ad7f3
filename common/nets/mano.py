"""TwoHandMano: both hands' MANO layers as one differentiable module on smplx's building blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from smplx.lbs import batch_rodrigues
from torch import Tensor, nn

from common.nets.mano_files import HandModel
from common.types import RIGHT, ManoParams
from common.utils.joints import FINGERTIP_VERTICES, JOINTS, MANO_JOINTS, WRIST


class TwoHandMano(nn.Module):
    """MANO parameters of both hands -> vertices and the 21 joints.

    All arrays are non-persistent buffers: they follow the module's device and never enter a checkpoint.

    Args:
        right, left: the hand models, see `common.nets.mano_files.read_hand_models`.
    """

    def __init__(self, right: HandModel, left: HandModel) -> None:
        super().__init__()
        self.name = right.name
        self.parents: tuple[int, ...] = tuple(right.parents.tolist())
        if (right.parents != left.parents).any():
            raise ValueError("the two hands have different joint trees")

        def buffer(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean"):
            stacked = torch.stack([torch.from_numpy(getattr(hand, name)).float() for hand in (right, left)])
            buffer(name, stacked)
        buffer("faces", torch.stack([torch.from_numpy(hand.faces) for hand in (right, left)]))
        buffer("joint_regressor", self._joint_regressor())

    def _joint_regressor(self) -> Tensor:
        """(21, 778): MANO's 16 joints in our order and the 5 fingertip vertices. The right hand's serves both hands,
        as in the published system."""
        regressor = torch.zeros(len(JOINTS), self.v_template.shape[1])
        for index, name in enumerate(JOINTS):
            if name in FINGERTIP_VERTICES:
                regressor[index, FINGERTIP_VERTICES[name]] = 1
            else:
                regressor[index] = self.J_regressor[RIGHT, MANO_JOINTS.index(name)]
        return regressor

    def regress_joints(self, vertices: Tensor) -> Tensor:
        """(..., 778, 3) -> (..., 21, 3), the 21 joints of posed vertices."""
        return torch.einsum("jv,...vk->...jk", self.joint_regressor, vertices)

    def forward(self, params: ManoParams) -> tuple[Tensor, Tensor]:
        """Skin both hands.

        Args:
            params: batch shape (N,), axis-angle, without the mean pose (which is added here).

        Returns:
            vertices (N, 2, 778, 3), joints (N, 2, 21, 3): m; the pose turns about the wrist joint of the shaped
            template, so the wrist does not sit at the origin. Always float32, also under autocast.
        """
        with torch.autocast(params.betas.device.type, enabled=False):
            pose = params.hand_pose.float() + self.hands_mean.view(2, 15, 3)
            pose = torch.cat((params.global_orient.float()[:, :, None], pose), 2)
            batch = pose.shape[0]
            rotations = batch_rodrigues(pose.reshape(-1, 3)).view(batch, 2, 16, 3, 3)

            shaped = self.v_template + torch.einsum("nhb,hvkb->nhvk", params.betas.float(), self.shapedirs)
            rest_joints = torch.einsum("hjv,nhvk->nhjk", self.J_regressor, shaped)
            features = (rotations[:, :, 1:] - torch.eye(3, device=pose.device)).flatten(2)
            posed = shaped + torch.einsum("nhf,hvkf->nhvk", features, self.posedirs)

            transforms = forward_kinematics(rotations.flatten(0, 1), rest_joints.flatten(0, 1), self.parents)
            skinning = torch.einsum("hvj,nhjab->nhvab", self.weights, transforms.unflatten(0, (batch, 2)))
            vertices = (skinning[..., :3, :3] @ posed[..., None])[..., 0] + skinning[..., :3, 3]
            return vertices, self.regress_joints(vertices)


def forward_kinematics(rotations: Tensor, rest_joints: Tensor, parents: Sequence[int]) -> Tensor:
    """The transforms that linear blend skinning mixes: they take each joint's surroundings from rest to the pose.

    The same numbers as `smplx.lbs.batch_rigid_transform`. With the parents as Python ints nothing is read back from
    the device, and `torch.compile` sees one graph.

    Args:
        rotations: (M, J, 3, 3), each relative to its parent.
        rest_joints: (M, J, 3) m.
        parents: J joints; a parent comes before its children, and the root first.

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
