"""Rotations: 6D, matrix, axis-angle. All functions are differentiable and never synchronise with the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.precision import full_precision


@full_precision
def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """(..., 6) -> (..., 3, 3). Gram-Schmidt on the two halves, which become the rows of the matrix.

    Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", CVPR 2019 (there: columns).
    """
    first, second = rot6d[..., :3], rot6d[..., 3:]
    b1 = F.normalize(first, dim=-1)
    b2 = F.normalize(second - (b1 * second).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack((b1, b2, torch.linalg.cross(b1, b2)), -2)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotation -> (..., 4) unit quaternion, real part first and not negative.

    Each of the four components follows from the diagonal, and the others from it by division; the largest is taken, so
    that the division is well conditioned (Shepperd, "Quaternion from Rotation Matrix", 1978).
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in matrix.unbind(-2))
    # Row k is 4 q_k * (w, x, y, z).
    candidates = torch.stack(
        [
            torch.stack((1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01), -1),
            torch.stack((m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20), -1),
            torch.stack((m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21), -1),
            torch.stack((m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22), -1),
        ],
        -2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    quaternion = F.normalize(candidates.gather(-2, index)[..., 0, :], dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """(..., 4) unit, real part first and not negative -> (..., 3) axis-angle, angle in [0, pi]."""
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    squared = imaginary.square().sum(-1, keepdim=True)
    small = squared < 1e-12
    norm = torch.where(small, torch.ones_like(squared), squared).sqrt()  # sqrt has no gradient at 0
    # angle / sin(angle / 2); the series 2 + s^2 / 3 (s = sin) is exact to rounding where it is used.
    factor = torch.where(small, 2 + squared / 3, 2 * torch.atan2(norm, real) / norm)
    return imaginary * factor


@full_precision
def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotation -> (..., 3) axis-angle in radians, angle in [0, pi]."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


@full_precision
def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis-angle in radians -> (..., 3, 3). Rodrigues' formula; a series near 0 keeps the gradient finite."""
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-12
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6, angle.sin() / angle)  # sin(t) / t
    cosine = torch.where(small, 0.5 - squared / 24, 2 * ((angle / 2).sin() / angle).square())  # (1 - cos t) / t^2
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + sine * cross + cosine * (cross @ cross)
