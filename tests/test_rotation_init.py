"""The trap in the L1 loss on rotation matrices, the start that avoids it, and the check that reports it."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.logger import TrainLog
from common.types import ManoParams
from common.utils.joints import MANO_JOINTS
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix
from main.build import build_model
from main.config import Config
from main.options import change_config, preset_config
from main.train import StepResult, sum_joint_angles

IDENTITY = torch.tensor([1.0, 0, 0, 0, 1, 0])


def share_turned(start: torch.Tensor, power: int) -> float:
    """The share of 6D vectors that end beyond 90 degrees, after 300 steps of Adam towards targets within 25 degrees.

    Args:
        start: (N, 6).
        power: of the differences between the entries of the matrices: 1 for L1, 2 for L2.
    """
    generator = torch.Generator().manual_seed(1)
    rot6d = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([rot6d], lr=0.01)
    for _ in range(300):
        axis = torch.nn.functional.normalize(torch.randn(len(rot6d), 3, generator=generator), dim=-1)
        angle = math.radians(25) * torch.rand(len(rot6d), 1, generator=generator)
        difference = rot6d_to_matrix(rot6d) - axis_angle_to_matrix(axis * angle)
        optimizer.zero_grad()
        difference.abs().pow(power).sum().backward()
        optimizer.step()
    angles = matrix_to_axis_angle(rot6d_to_matrix(rot6d.detach())).norm(dim=-1)
    return float((angles > math.pi / 2).float().mean())


def test_l1_holds_random_starts_half_a_turn_away_and_l2_does_not():
    random = 0.1 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    assert share_turned(random, power=1) > 0.25
    assert share_turned(random, power=2) == 0
    assert share_turned(IDENTITY + random, power=1) == 0


@pytest.mark.parametrize("axis", range(3))
def test_half_a_turn_about_a_coordinate_axis_is_a_local_minimum_of_l1(axis):
    """The loss is 2 |cos t - 1| + 2 |sin t|; its minimum at half a turn is strict."""
    angles = math.pi + torch.linspace(-0.3, 0.3, 7)
    vectors = torch.zeros(7, 3)
    vectors[:, axis] = angles
    losses = (axis_angle_to_matrix(vectors) - torch.eye(3)).abs().sum((1, 2))
    torch.testing.assert_close(losses, 2 * (angles.cos() - 1).abs() + 2 * angles.sin().abs(), atol=1e-5, rtol=0)
    assert losses.argmin() == 3 and losses[3] < losses[[2, 4]].min() - 0.1


def test_the_small_network_starts_at_the_rest_pose_and_the_published_one_at_zero():
    starts = {}
    for init in ("identity", "published"):
        torch.manual_seed(0)
        config = change_config(preset_config("small"), {"rotation_init": init}, "the test")
        starts[init] = build_model(config, None).state_dict()
    changed = {key for key, value in starts["identity"].items() if not torch.equal(value, starts["published"][key])}
    assert changed == {f"hand_rotation_net.{head}.0.bias" for head in ("root_pose_out", "pose_out")}
    for key in changed:
        assert torch.equal(starts["identity"][key].view(-1, 6), IDENTITY.expand(len(starts["identity"][key]) // 6, 6))
        assert not starts["published"][key].any()
    assert Config().rotation_init == "published" and preset_config("small").rotation_init == "identity"


def test_joints_that_are_turned_are_named_at_the_end_of_an_epoch(tmp_path: Path, capsys):
    pose = torch.zeros(2, 2, 15, 3)
    pose[:, :, 4, 1] = math.radians(177)
    pose[1, 1] = 9.0  # a hand without a fit, which does not count
    valid = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    mano = ManoParams(global_orient=torch.zeros(2, 2, 3), hand_pose=pose, betas=torch.zeros(2, 2, 10))
    result = StepResult(predictions=[SimpleNamespace(mano=mano)], targets=[SimpleNamespace(mano_valid=valid)])
    sums, hands = sum_joint_angles(result)
    assert hands.tolist() == [3.0] * 15
    degrees = dict(zip(MANO_JOINTS[1:], (sums / hands).rad2deg().tolist(), strict=True))
    log = TrainLog(tmp_path, (0, 0), 10)
    log.joint_angles((2, 9), degrees)
    log.joint_angles((3, 9), dict.fromkeys(degrees, 100.0))
    log.close()
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert len(lines) == 1 and "in epoch 2: Middle_2 (177);" in lines[0]
