"""Boxes. A box is xyxy unless its name says otherwise (`xywh`: x, y of the corner, width, height)."""

import numpy as np
import torch
from torch import Tensor

from common.precision import full_precision
from common.utils.frames import Frames, rescale


def sanitize_xywh(box_xywh: np.ndarray, image_size: tuple[int, int]) -> np.ndarray | None:
    """The part of a box inside the image, as the published system defines it.

    The corner is clipped first, and the size counts from the clipped corner. A box that crosses the left or top border
    is therefore shifted, not cut.

    Args:
        box_xywh: (4,) pixels.
        image_size: (h, w) of the image.

    Returns:
        (4,) float64 xywh, or None if nothing usable is left.
    """
    boxes, usable = sanitize_boxes_xywh(np.asarray(box_xywh)[None], np.array([image_size]))
    return boxes[0] if usable[0] else None


def sanitize_boxes_xywh(boxes_xywh: np.ndarray, image_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`sanitize_xywh` of many boxes at once.

    Args:
        boxes_xywh: (..., 4) pixels.
        image_sizes: (..., 2) h, w.

    Returns:
        (..., 4) float64 xywh, and (...) bool: whether the box is usable; the numbers of an unusable one are undefined.
    """
    boxes_xywh = np.asarray(boxes_xywh, np.float64)
    size = boxes_xywh[..., 2:]
    low = np.maximum(0.0, boxes_xywh[..., :2])
    high = np.minimum(image_sizes[..., ::-1] - 1.0, low + np.maximum(0.0, size - 1))
    usable = (size.prod(-1) > 0) & (high > low).all(-1)
    return np.concatenate((low, high - low), -1), usable


def expand_xywh(box_xywh: np.ndarray, aspect: float, extension: float, truncate: bool = False) -> np.ndarray:
    """Enlarge the shorter side about the center until w / h = `aspect`, then both by `extension`.

    Args:
        box_xywh: (4,) pixels.
        aspect: w / h of the result.
        extension: factor on width and height.
        truncate: round the size toward zero, then the corner computed from the rounded size, likewise.

    Returns:
        (4,) float64 xywh.
    """
    x, y, w, h = np.asarray(box_xywh, np.float64)
    rounded = np.trunc if truncate else np.asarray
    size = rounded(np.array([max(w, aspect * h), max(h, w / aspect)]) * extension)
    return np.concatenate((rounded(np.array([x + w / 2, y + h / 2]) - size / 2), size))


def body_box(
    box_xywh: np.ndarray, image_size: tuple[int, int], crop_size: tuple[int, int], extension: float
) -> np.ndarray | None:
    """The box a crop is taken from: sanitized, brought to the crop's aspect, enlarged.

    The published system computes the box in the array it was given. An array of integers therefore truncates each of
    the four numbers toward zero as it is assigned.

    Args:
        box_xywh: (4,) the person in `image`. Its dtype decides: integers give integers.
        image_size, crop_size: (h, w).
        extension: 1.25 for in-the-wild photos and the demo, 1.0 for the studio datasets.

    Returns:
        (4,) float64 xywh, or None if the box is unusable.
    """
    box_xywh = np.asarray(box_xywh)
    box = sanitize_xywh(box_xywh, image_size)
    if box is None:
        return None
    box = expand_xywh(box, crop_size[1] / crop_size[0], extension, np.issubdtype(box_xywh.dtype, np.integer))
    return box if (box[2:] > 0).all() else None


@full_precision
def restore_box(
    centers_body_hm: Tensor, sizes_body_hm: Tensor, frames: Frames, aspect: float | None, extension: float
) -> Tensor:
    """The detector's center and size as a box in `body`.

    Args:
        centers_body_hm, sizes_body_hm: (..., 2).
        aspect: the shorter side (by signed value) is enlarged to this w / h; None keeps both.
        extension: factor on width and height about the center.

    Returns:
        (..., 4) xyxy in `body`. A negative predicted size gives x2 < x1, as in the published system.
    """
    low = rescale(centers_body_hm - sizes_body_hm / 2, frames.body_hm, frames.body)
    high = rescale(centers_body_hm + sizes_body_hm / 2, frames.body_hm, frames.body)
    center = (low + high) / 2
    width, height = (high - low).unbind(-1)
    if aspect is not None:
        width, height = torch.maximum(width, aspect * height), torch.maximum(height, width / aspect)
    half = torch.stack((width, height), -1) * extension / 2
    return torch.cat((center - half, center + half), -1)


def iou(box_a: Tensor | np.ndarray, box_b: Tensor | np.ndarray) -> Tensor:
    """(..., 4) xyxy x (..., 4) -> (...) intersection over union, inter / (union + 1e-5) as in the published system."""
    box_a, box_b = torch.as_tensor(box_a), torch.as_tensor(box_b)
    low, high = torch.maximum(box_a[..., :2], box_b[..., :2]), torch.minimum(box_a[..., 2:], box_b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = (box_a[..., 2:] - box_a[..., :2]).prod(-1), (box_b[..., 2:] - box_b[..., :2]).prod(-1)
    return inter / (area_a + area_b - inter + 1e-5)


def xywh_to_xyxy(box_xywh: np.ndarray) -> np.ndarray:
    """(..., 4) corner and size -> (..., 4) corner and opposite corner."""
    return np.concatenate((box_xywh[..., :2], box_xywh[..., :2] + box_xywh[..., 2:]), -1)


def bbox_from_points(points: np.ndarray, mask: np.ndarray, extension: float) -> tuple[np.ndarray, np.ndarray]:
    """The tight box of points, enlarged about its center.

    Args:
        points: (..., P, 2).
        mask: (..., P) bool, the points to enclose.
        extension: factor on width and height.

    Returns:
        (..., 4) float64 xywh, and (...) bool: whether the mask has any point; the numbers are zeros otherwise.
    """
    points = np.asarray(points, np.float64)
    low = np.where(mask[..., None], points, np.inf).min(-2)
    high = np.where(mask[..., None], points, -np.inf).max(-2)
    found = np.asarray(mask.any(-1))
    low, high = np.where(found[..., None], low, 0), np.where(found[..., None], high, 0)
    size = (high - low) * extension
    return np.concatenate(((low + high) / 2 - size / 2, size), -1), found
