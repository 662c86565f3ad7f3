"""TransNet: where the left hand is relative to the right, from both hands' 2.5D joints."""

import torch
from torch import Tensor, nn

from common.nets.layers import conv_bn_relu, init_head
from common.nets.resnet import ResNetTrunk
from common.utils.affine import apply_affine, box_to_grid, invert_affine
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import sample_features
from common.utils.joints import WRIST
from common.utils.precision import full_precision

SIGMA = 2.5  # cells, the Gaussian of each joint
PEAK = 255.0  # the heatmap's value at a joint
BOX_EXTENSION = 1.2  # each hand's joint box is enlarged by this


def pair_box(joints_crop: Tensor) -> Tensor:
    """(N, 2, J, 3) -> the square around both hands, (N, 4) xyxy in `crop`."""
    low, high = joints_crop[..., :2].amin(2), joints_crop[..., :2].amax(2)  # (N, 2, 2)
    center, half = (low + high) / 2, (high - low) * BOX_EXTENSION / 2
    low, high = (center - half).amin(1), (center + half).amax(1)
    center, half = (low + high) / 2, (high - low).amax(-1, keepdim=True) / 2
    return torch.cat((center - half, center + half), -1)


def gaussian(positions: Tensor, size: int) -> Tensor:
    """exp(-(i - position)^2 / (2 sigma^2)) at the cells i of one axis. (...) -> (..., size)."""
    cells = torch.arange(size, device=positions.device, dtype=positions.dtype)
    return torch.exp(-(cells - positions[..., None]).square() / (2 * SIGMA**2))


@full_precision
def convolve_heatmaps(joints: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The 3 x 3 convolution of all joints' 3D Gaussian heatmaps, without making the heatmaps.

    A joint's heatmap, 255 exp(-((x - x_j)^2 + (y - y_j)^2 + (z - z_j)^2) / (2 sigma^2)), is a product of three
    vectors, and its depth is the convolution's input channel. So the sum over channels goes first (a 3 x 3 kernel a
    joint), then the sum over kernel rows, then over kernel columns and joints: one matrix product a kernel column.

    Args:
        joints: (N, P, 3) x, y, z in cells.
        weight: (C, P * D, 3, 3), channel = joint * D + depth.
        bias: (C,).
        size: (D, H, W) of the heatmaps.

    Returns:
        (N, C, H, W): what `conv2d(heatmaps, weight, bias, padding=1)` gives, the sums in another order.
    """
    depth, height, width = size
    batch, points = joints.shape[:2]
    channels = weight.shape[0]
    x, y, z = (gaussian(joints[..., axis], n) for axis, n in ((0, width), (1, height), (2, depth)))
    # Kernel tap k reads cell i + k - 1; outside the map is 0, as the convolution's padding has it. (N, P, 3, H or W)
    shifted_x, shifted_y = (nn.functional.pad(g, (1, 1)).unfold(-1, g.shape[-1], 1) for g in (x, y))

    z = z * PEAK
    taps = weight.unflatten(1, (points, depth)).flatten(-2).unbind(-1)  # 9 of (C, P, D)
    out = bias.view(1, channels, 1, 1).repeat(batch, 1, height, width).flatten(1, 2)  # (N, C * H, W)
    for column in range(3):
        # One tap at a time, because the product copies it: all of the weights are more than the result for an image.
        kernels = torch.stack([torch.einsum("npd,cpd->npc", z, taps[3 * row + column]) for row in range(3)], -1)
        # Half of the joints at a time: the rows, (N, P, C * H), are most of the memory. They have no name, because
        # the next ones would be made while it still held these.
        for half in (slice(points // 2), slice(points // 2, None)):
            out.baddbmm_((kernels[:, half] @ shifted_y[:, half]).flatten(2).transpose(1, 2), shifted_x[:, half, column])
    return out.view(batch, channels, height, width)


class TransNet(nn.Module):
    """Both hands' 2.5D joints -> relative translation.

    The backbone is used from `layer1` on. Its stem (`conv1`, `bn1`) never runs; it stays, without gradient, because the
    published files hold it.
    """

    def __init__(self, backbone: str, joints: int, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.backbone = ResNetTrunk(backbone)
        self.backbone.conv1.requires_grad_(False)
        self.backbone.bn1.requires_grad_(False)
        self.conv = conv_bn_relu(2 * joints * frames.pair_bins, self.backbone.stem_channels, 3)
        self.fc = nn.Sequential(nn.Linear(2 * (self.backbone.channels + 2), 3))
        init_head(self.conv)
        init_head(self.fc)

    @full_precision
    def place_joints(self, joints_hand_hm: Tensor, crop_to_hand: Tensor) -> Tensor:
        """(N, 2, J, 3), (N, 2, 2, 3) -> (N, 2, J, 3) in `pair_hm`: both hands on the grid of the square around them."""
        frames = self.frames
        joints_hand = rescale(joints_hand_hm, frames.hand_hm, frames.hand)
        joints_crop = apply_affine(invert_affine(crop_to_hand), joints_hand)
        crop_to_pair_hm = box_to_grid(pair_box(joints_crop), frames.pair_hm)
        joints_pair_hm = apply_affine(crop_to_pair_hm[:, None], joints_crop)
        depth = joints_pair_hm[..., 2:] / frames.hand_bins * frames.pair_bins
        return torch.cat((joints_pair_hm[..., :2], depth), -1)

    def forward(self, joints_hand_hm: Tensor, crop_to_hand: Tensor) -> Tensor:
        """Detached joints (N, 2, J, 3) in `hand_hm` and the hands' crop_to_hand (N, 2, 2, 3) -> (N, 3) m."""
        frames = self.frames
        joints = self.place_joints(joints_hand_hm, crop_to_hand)
        convolution, norm, relu = self.conv
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        size = (frames.pair_bins, *frames.pair_hm)
        features = convolve_heatmaps(joints.flatten(1, 2), convolution.weight, convolution.bias, size)
        features = self.backbone.stages(relu(norm(features)))

        stride = frames.pair_hm[0] // features.shape[-2]
        wrists = joints[:, :, WRIST, :2] / stride
        tokens = torch.cat((sample_features(features, wrists), wrists), -1)
        return self.fc(tokens.flatten(1)).float()
