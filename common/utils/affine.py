"""2 x 3 affine maps between pixel frames, as tensors or arrays named `a_to_b`."""

import numpy as np
import torch
from torch import Tensor

from common.precision import full_precision


@full_precision
def apply_affine(a_to_b: Tensor, points_a: Tensor) -> Tensor:
    """Map points.

    Args:
        a_to_b: (..., 2, 3).
        points_a: (..., P, C) with x, y first; further components, e.g. a depth, are kept.
    """
    xy = points_a[..., :2] @ a_to_b[..., :2].transpose(-1, -2) + a_to_b[..., None, :, 2]
    return torch.cat((xy, points_a[..., 2:]), -1) if points_a.shape[-1] > 2 else xy


@full_precision
def invert_affine(a_to_b: Tensor) -> Tensor:
    """(..., 2, 3) -> its inverse b_to_a, (..., 2, 3), by Cramer's rule: a solver would wait for the device."""
    (a, b, tx), (c, d, ty) = (row.unbind(-1) for row in a_to_b.unbind(-2))
    det = a * d - b * c
    rows = ((d, -b, b * ty - d * tx), (-c, a, c * tx - a * ty))
    return torch.stack([torch.stack(row, -1) for row in rows], -2) / det[..., None, None]


@full_precision
def box_to_grid(box_a: Tensor, size_b: tuple[int, int]) -> Tensor:
    """The axis-aligned map from a box to a whole grid.

    Args:
        box_a: (..., 4) xyxy. A negative width mirrors the image, a width of 0 gives one pixel's color.
        size_b: (h, w) of the grid; the box center goes to (w / 2, h / 2).

    Returns:
        a_to_b (..., 2, 3): u = s_x (x - c_x) + w / 2, s_x = w / (x2 - x1 + 1e-8), likewise v.
    """
    height, width = size_b
    x1, y1, x2, y2 = box_a.unbind(-1)
    scale_x, scale_y = width / (x2 - x1 + 1e-8), height / (y2 - y1 + 1e-8)
    zero = torch.zeros_like(scale_x)
    row_x = torch.stack((scale_x, zero, width / 2 - scale_x * (x1 + x2) / 2), -1)
    row_y = torch.stack((zero, scale_y, height / 2 - scale_y * (y1 + y2) / 2), -1)
    return torch.stack((row_x, row_y), -2)


def image_to_crop(
    box_image: np.ndarray, crop_size: tuple[int, int], scale: float = 1.0, rot: float = 0.0
) -> np.ndarray:
    """The map from a body box, scaled and rotated about its center, to the whole crop.

    Args:
        box_image: (4,) x, y, w, h in `image`.
        crop_size: (h, w).
        scale: factor on the box size.
        rot: degrees, (x, y) -> (x cos - y sin, x sin + y cos).

    Returns:
        (2, 3) float64. The midpoints of the rotated box's right and bottom edges go to those of the crop's.
    """
    height, width = crop_size
    x, y, w, h = np.asarray(box_image, np.float64)
    cos, sin = np.cos(np.deg2rad(rot)), np.sin(np.deg2rad(rot))
    right = np.array([cos, sin]) * w * scale / 2  # from the center to the midpoint of the right edge
    bottom = np.array([-sin, cos]) * h * scale / 2
    crop_to_image = np.stack((right / (width / 2), bottom / (height / 2)), 1)
    linear = np.linalg.inv(crop_to_image)
    center = np.array([x + w / 2, y + h / 2])
    return np.concatenate((linear, (np.array([width / 2, height / 2]) - linear @ center)[:, None]), 1)


def invert_affine_np(a_to_b: np.ndarray) -> np.ndarray:
    """(2, 3) -> its inverse (2, 3), float64, on the host."""
    linear = np.linalg.inv(np.asarray(a_to_b, np.float64)[:, :2])
    return np.concatenate((linear, -linear @ np.asarray(a_to_b, np.float64)[:, 2:]), 1)
