"""Heatmaps: the point that one encodes, features sampled at points."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.precision import full_precision


@full_precision
def soft_argmax(logits: Tensor) -> Tensor:
    """The expected index along each axis under the softmax over the whole heatmap.

    Args:
        logits: (N, J, H, W) or (N, J, D, H, W).

    Returns:
        (N, J, 2) x, y or (N, J, 3) x, y, z in cells, 0 to size - 1.
    """
    sizes = logits.shape[2:]
    probability = logits.flatten(2).softmax(-1).unflatten(2, sizes)
    axes = range(2, logits.ndim)
    expected = []
    for axis in reversed(axes):  # the last axis is x
        marginal = probability.sum([other for other in axes if other != axis])
        index = torch.arange(logits.shape[axis], device=logits.device, dtype=logits.dtype)
        expected.append((marginal * index).sum(-1))
    return torch.stack(expected, -1)


@full_precision
def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear features at points, zero outside.

    Args:
        features: (N, C, H, W).
        points: (N, P, 2) x, y in cells.

    Returns:
        (N, P, C).
    """
    height, width = features.shape[-2:]
    x, y = points.unbind(-1)
    grid = torch.stack((x / (width - 1) * 2 - 1, y / (height - 1) * 2 - 1), -1)
    return F.grid_sample(features, grid[:, :, None], align_corners=True)[..., 0].transpose(1, 2)


def depth_to_bin(depth_rel: Tensor, bins: int, depth_range: float) -> Tensor:
    """Root-relative depth, m -> heatmap depth in bins: (z / (range / 2) + 1) / 2 * bins."""
    return (depth_rel / (depth_range / 2) + 1) / 2 * bins


def bin_to_depth(depth_bin: Tensor, bins: int, depth_range: float) -> Tensor:
    """The inverse of `depth_to_bin`, m."""
    return (depth_bin / bins * 2 - 1) * (depth_range / 2)
