"""Left <-> right: the one place where a left hand becomes a right one: images, points, rotations, translations."""

import torch
from torch import Tensor


def mirror_image(image: Tensor) -> Tensor:
    """(..., H, W) -> columns in reverse order."""
    return image.flip(-1)


def mirror_points(points: Tensor, width: int) -> Tensor:
    """(..., C) points in pixels, x first -> x becomes width - 1 - x, the rest is kept."""
    return torch.cat((width - 1 - points[..., :1], points[..., 1:]), -1)


def mirror_rotation(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis-angle -> the rotation seen in a mirror across x: (a, -b, -c)."""
    return torch.cat((axis_angle[..., :1], -axis_angle[..., 1:]), -1)


def mirror_translation(transl: Tensor) -> Tensor:
    """(..., 3) m -> x negated."""
    return torch.cat((-transl[..., :1], transl[..., 1:]), -1)
