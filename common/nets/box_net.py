"""BoxNet: position and size of both hands in the body image."""

import torch
from torch import Tensor, nn

from common.nets.layers import deconv_bn_relu, init_head
from common.precision import at_least_float32
from common.utils.heatmaps import sample_features, soft_argmax


class BoxNet(nn.Module):
    """Body features -> centre, size and confidence of the right and the left hand's box.

    Args:
        in_channels: channels of the body backbone.
        channels: width of the transposed convolutions.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.deconv = deconv_bn_relu([in_channels, channels, channels, channels])
        self.bbox_center = nn.Sequential(nn.Conv2d(channels, 2, 1))
        self.rhand_size, self.lhand_size = (
            nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, 2))
            for _ in range(2)
        )
        init_head(self)

    def forward(self, body_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> centers (N, 2, 2) x, y; sizes (N, 2, 2) w, h; scores (N, 2).

        Centres and sizes are in `body_hm`, whose grid is 8 times finer than that of the features. The score is the
        probability of the centre heatmap at the centre: low if the heatmap has two peaks.
        """
        features = self.deconv(body_features)
        logits = at_least_float32(self.bbox_center(features))
        centers = soft_argmax(logits)
        at_center = sample_features(features, centers.detach())
        sizes = torch.stack((self.rhand_size(at_center[:, 0]), self.lhand_size(at_center[:, 1])), 1)
        probability = logits.flatten(2).softmax(-1).view_as(logits)
        scores = sample_features(probability, centers.detach()).diagonal(dim1=1, dim2=2)
        return centers, at_least_float32(sizes), scores
