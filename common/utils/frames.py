"""The frames: every place a coordinate can live, its size, and the maps between them.

| frame     | size (h, w) or unit | what lives there                                                              |
|-----------|---------------------|-------------------------------------------------------------------------------|
| `cam`     | m                   | absolute camera coordinates: x right, y down, z away                          |
| `rel`     | m                   | axes of `cam`, each hand's own wrist at the origin                            |
| `image`   | pixels of the file  | what the user gave, what is reported                                          |
| `crop`    | 512 x 384           | the person crop, the network's input                                          |
| `body`    | 256 x 192           | the crop resized for the box detector                                         |
| `body_hm` | 64 x 48             | the detector's heatmaps                                                      |
| `hand`    | 256 x 256           | one hand's crop; the virtual camera looks at it                               |
| `hand_hm` | 8 x 8 x 8           | one hand's 2.5D joints (z: root-relative depth in bins)                       |
| `pair_hm` | 64 x 64 x 64        | both hands' 2.5D joints, read by the translation network                      |

Pixel centres sit at integer coordinates. Going from one grid to another that shows the same content is the plain
ratio x_b = x_a / w_a * w_b, as in the published system (no half-pixel shift).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Sizes of the frames, (h, w) in pixels or cells, and the virtual camera. The defaults are the published ones."""

    crop: tuple[int, int] = (512, 384)
    body: tuple[int, int] = (256, 192)
    body_hm: tuple[int, int] = (64, 48)
    hand: tuple[int, int] = (256, 256)
    hand_hm: tuple[int, int] = (8, 8)
    pair_hm: tuple[int, int] = (64, 64)
    hand_bins: int = 8  # depth bins of hand_hm
    pair_bins: int = 64  # depth bins of pair_hm
    depth_range: float = 0.3  # m covered by the depth bins, the wrist in the middle
    focal: float = 5000.0  # px in `hand`; virtual: nobody knows the photo's real camera
    camera_depth_size: float = 0.6  # m; sets the depth at which a hand of usual size fills its crop

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
        points: (..., C) with x, y first; what follows (a depth, say) is kept.
    """
    return torch.cat((rescale_x(points[..., :1], size_a, size_b), rescale_y(points[..., 1:2], size_a, size_b),
                      points[..., 2:]), -1)  # fmt: skip


def rescale_x(x: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """x on grid a -> x on grid b; sizes are (h, w)."""
    return x / size_a[1] * size_b[1]


def rescale_y(y: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """y on grid a -> y on grid b; sizes are (h, w)."""
    return y / size_a[0] * size_b[0]
