"""The factorised first stage of the translation network equals the dense one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.nets.trans_net import PEAK, SIGMA, convolve_heatmaps

CASES = {
    "usual": (2, 42, 64, (64, 64, 64)),
    "one sample, few joints": (1, 3, 5, (64, 64, 64)),
    "uneven grid": (2, 4, 7, (6, 20, 12)),
}


def dense(joints: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The published form: every joint's 3D heatmap, then the convolution with depth as channels."""
    depth, height, width = size
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=joints.dtype) for n in (depth, height, width)), indexing="ij")
    delta = torch.stack((x, y, z), -1) - joints[:, :, None, None, None]
    heatmaps = PEAK * torch.exp(-delta.square().sum(-1) / (2 * SIGMA**2))
    return F.conv2d(heatmaps.flatten(1, 2), weight, bias, padding=1)


def make(case: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    batch, points, channels, size = CASES[case]
    torch.manual_seed(0)
    # Joints inside, on the border and beyond it.
    joints = torch.rand(batch, points, 3, dtype=dtype) * torch.tensor(size[::-1]) * 1.4 - torch.tensor(size[::-1]) * 0.2
    return joints, torch.randn(channels, points * size[0], 3, 3, dtype=dtype), torch.randn(channels, dtype=dtype), size


@pytest.mark.parametrize("case", CASES)
def test_equals_dense(case):
    arguments = make(case)
    expected = dense(*arguments)
    assert (convolve_heatmaps(*arguments) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["one sample, few joints", "uneven grid"])
def test_gradients_equal_dense(case):
    """With respect to the weight, the bias and the joints, in double."""
    *tensors, size = make(case, torch.float64)
    gradients = []
    for function in (convolve_heatmaps, dense):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        function(*leaves, size).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()
