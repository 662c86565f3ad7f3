"""The frames: every space a coordinate can be in, its size, and the maps between them.

| frame     | size (h, w) or unit | contents                                                                      |
|-----------|---------------------|-------------------------------------------------------------------------------|
| `cam`     | m                   | absolute camera coordinates: x right, y down, z away                          |
| `rel`     | m                   | axes of `cam`, each hand's own wrist at the origin                            |
| `image`   | pixels of the file  | the image as given and as reported                                            |
| `crop`    | 512 x 384           | the person crop, the network's input                                          |
| `body`    | 256 x 192           | the crop resized for the box detector                                         |
| `body_hm` | 64 x 48             | the detector's heatmaps                                                       |
| `hand`    | 256 x 256           | one hand's crop; the virtual camera looks at it                               |
| `hand_hm` | 8 x 8 x 8           | one hand's 2.5D joints (z: root-relative depth in bins)                       |
| `pair_hm` | 64 x 64 x 64        | both hands' 2.5D joints, read by the translation network                      |

Pixel centres sit at integer coordinates. Going from one grid to another that shows the same content is the plain
ratio x_b = x_a / w_a * w_b, as in the published system (no half-pixel shift).
"""

from typing import Annotated

import torch
from msgspec import Meta, Struct
from torch import Tensor

# Beyond 8192 pixels or 1024 bins a network would only exhaust the memory.
Side = Annotated[int, Meta(ge=2, le=8192)]
# The backbones halve an input five times. At 32 pixels a single cell would be left, and batch norm needs two.
BackboneSide = Annotated[int, Meta(ge=64, le=8192, multiple_of=32)]
PairSide = Annotated[int, Meta(ge=16, le=8192, multiple_of=8)]  # three halvings
HeatmapSide = Annotated[int, Meta(ge=1, le=8192)]
Bins = Annotated[int, Meta(ge=1, le=1024)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]  # infinity and nonsense stay out; nothing useful comes near 1e6


class Frames(Struct, frozen=True):
    """Sizes of the frames, (h, w) in pixels or cells, and the virtual camera. The defaults are the published ones."""

    crop: tuple[Side, Side] = (512, 384)
    body: tuple[BackboneSide, BackboneSide] = (256, 192)
    body_hm: tuple[HeatmapSide, HeatmapSide] = (64, 48)  # a quarter of `body`
    hand: tuple[BackboneSide, BackboneSide] = (256, 256)
    hand_hm: tuple[HeatmapSide, HeatmapSide] = (8, 8)  # `hand` / 32
    pair_hm: tuple[PairSide, PairSide] = (64, 64)
    hand_bins: Bins = 8  # depth bins of hand_hm
    pair_bins: Bins = 64  # depth bins of pair_hm
    depth_range: Positive = 0.3  # m covered by the depth bins, the wrist in the middle
    focal: Positive = 5000.0  # px in `hand`; virtual, as a photo's real camera is unknown
    camera_depth_size: Positive = 0.6  # m; sets the depth at which a hand of average size fills its crop

    @property
    def princpt(self) -> tuple[float, float]:
        """Principal point (x, y) of the virtual camera: the middle of `hand`."""
        return self.hand[1] / 2, self.hand[0] / 2

    @property
    def depth_scale(self) -> float:
        """k of root depth = k * sigmoid(t_z), m: sqrt(f^2 * camera_depth_size^2 / (h * w))."""
        return self.focal * self.camera_depth_size / (self.hand[0] * self.hand[1]) ** 0.5


def rescale(points: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """Points on grid a -> the same points on grid b; sizes are (h, w).

    Args:
        points: (..., C) with x, y first; further components, e.g. a depth, are kept.
    """
    (height_a, width_a), (height_b, width_b) = size_a, size_b
    x, y = points[..., :1] / width_a * width_b, points[..., 1:2] / height_a * height_b
    return torch.cat((x, y, points[..., 2:]), -1)
