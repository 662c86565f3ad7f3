"""PositionNet: the 2.5D joints of a hand, the left one mirrored."""

from torch import Tensor, nn

from common.nets.layers import init_head
from common.utils.heatmaps import soft_argmax


class PositionNet(nn.Module):
    """Hand features -> one 3D heatmap per joint -> its soft-argmax."""

    def __init__(self, in_channels: int, joints: int, bins: int) -> None:
        super().__init__()
        self.heatmap_shape = (joints, bins)
        self.conv = nn.Sequential(nn.Conv2d(in_channels, joints * bins, 1))
        init_head(self)

    def forward(self, hand_features: Tensor) -> Tensor:
        """(M, C, H, W) -> joints (M, J, 3) in `hand_hm`: x, y in cells, z in depth bins."""
        return soft_argmax(self.conv(hand_features).unflatten(1, self.heatmap_shape))
