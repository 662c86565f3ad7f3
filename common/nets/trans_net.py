"""TransNet: the position of the left hand relative to the right, from the 2.5D joints of both."""

import torch
from torch import Tensor, nn

from common.nets.layers import conv_bn_relu, init_head
from common.nets.resnet import ResNetBackbone
from common.precision import at_least_float32, full_precision
from common.utils.affine import apply_affine, box_to_grid, invert_affine
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import sample_features
from common.utils.joints import WRIST

SIGMA = 2.5  # cells, of the Gaussian of each joint
PEAK = 255.0  # value of the heatmap at a joint
BOX_EXTENSION = 1.2  # factor on the box of the joints of each hand


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
    """The 3 x 3 convolution of the 3D Gaussian heatmaps of all joints, without building the heatmaps.

    The heatmap of a joint, 255 exp(-((x - x_j)^2 + (y - y_j)^2 + (z - z_j)^2) / (2 sigma^2)), is a product of three
    vectors, and its depth is the input channel of the convolution. So the sum over channels comes first (it gives one
    3 x 3 kernel per joint), then that over kernel rows, then that over kernel columns and joints: one matrix product
    per kernel column.

    Args:
        joints: (N, P, 3) x, y, z in cells.
        weight: (C, P * D, 3, 3), channel = joint * D + depth.
        bias: (C,).
        size: (D, H, W) of the heatmaps.

    Returns:
        (N, C, H, W): `conv2d(heatmaps, weight, bias, padding=1)`, summed in another order.
    """
    depth, height, width = size
    batch, points = joints.shape[:2]
    channels = weight.shape[0]
    x, y, z = (gaussian(joints[..., axis], n) for axis, n in ((0, width), (1, height), (2, depth)))
    # Kernel tap k reads cell i + k - 1; cells outside are 0, as in the padded convolution. (N, P, 3, H or W)
    shifted_x, shifted_y = (nn.functional.pad(g, (1, 1)).unfold(-1, g.shape[-1], 1) for g in (x, y))

    z = z * PEAK
    taps = weight.unflatten(1, (points, depth)).flatten(-2).unbind(-1)  # 9 of (C, P, D)
    out = bias.view(1, channels, 1, 1).repeat(batch, 1, height, width).flatten(1, 2)  # (N, C * H, W)
    for column in range(3):
        # One tap at a time, because the product copies it: for one image, all weights are larger than the result.
        kernels = torch.stack([torch.einsum("npd,cpd->npc", z, taps[3 * row + column]) for row in range(3)], -1)
        # Half of the joints at a time: the rows, (N, P, C * H), take most of the memory. They have no name, which would
        # keep them alive while the next ones are computed.
        for half in (slice(points // 2), slice(points // 2, None)):
            out.baddbmm_((kernels[:, half] @ shifted_y[:, half]).flatten(2).transpose(1, 2), shifted_x[:, half, column])
    return out.view(batch, channels, height, width)


class TransNet(nn.Module):
    """Both hands' 2.5D joints -> relative translation.

    The backbone is used from `layer1` on. Its stem (`conv1`, `bn1`) never runs; it is kept, without gradient, because
    the published files contain it.
    """

    def __init__(self, backbone: str, joints: int, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.backbone = ResNetBackbone(backbone)
        self.backbone.conv1.requires_grad_(False)
        self.backbone.bn1.requires_grad_(False)
        self.conv = conv_bn_relu(2 * joints * frames.pair_bins, self.backbone.stem_channels, 3)
        self.fc = nn.Sequential(nn.Linear(2 * (self.backbone.channels + 2), 3))
        init_head(self.conv)
        init_head(self.fc)

    @full_precision
    def place_joints(self, joints_hand_hm: Tensor, crop_to_hand: Tensor) -> Tensor:
        """(N, 2, J, 3), (N, 2, 2, 3) -> (N, 2, J, 3) in `pair_hm`: both hands in the square around them."""
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
        weights = (convolution.get_parameter("weight"), convolution.get_parameter("bias"))
        features = convolve_heatmaps(joints.flatten(1, 2), *weights, (frames.pair_bins, *frames.pair_hm))
        features = self.backbone.stages(relu(norm(features)))

        stride = frames.pair_hm[0] // features.shape[-2]
        wrists = joints[:, :, WRIST, :2] / stride
        tokens = torch.cat((sample_features(features, wrists), wrists), -1)
        return at_least_float32(self.fc(tokens.flatten(1)))
