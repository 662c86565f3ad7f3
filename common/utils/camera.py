"""Cameras: from metres to pixels, and from pixels to a position in metres.

Every exported result obeys `project`: vertices in the frame `cam` (metres, x right, y down, z away from the camera)
and their camera give the pixels of the overlay. Pixel centres are at integer coordinates.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True)
class Camera:
    """Maps metres in `cam` to pixels of one frame.

    Attributes:
        focal: (2,) px; for an orthographic camera px per metre.
        princpt: (2,) principal point, px.
        orthographic: depth does not change the size (the virtual camera of the network); otherwise a pinhole camera.
    """

    focal: np.ndarray
    princpt: np.ndarray
    orthographic: bool


def project_pinhole(points_cam: Array, focal: Array, princpt: Array) -> Array:
    """(..., 3) m -> (..., 2) px, x / z * f + c. `focal` and `princpt` broadcast against (..., 2)."""
    return points_cam[..., :2] / points_cam[..., 2:] * focal + princpt


def project(points_cam: np.ndarray, camera: Camera) -> np.ndarray:
    """(..., 3) m in `cam` -> (..., 2) px in the camera's frame."""
    if camera.orthographic:
        return points_cam[..., :2] * camera.focal + camera.princpt
    return project_pinhole(points_cam, camera.focal, camera.princpt)


def place_before_camera(
    points_rel: np.ndarray, points_image: np.ndarray, focal: np.ndarray, princpt: np.ndarray
) -> np.ndarray | None:
    """The position of an object of known size in front of a pinhole camera, from the pixels of its points.

    Least squares over t of f (x + t_x) = (u - c) (z + t_z), which is linear in t, likewise for y.

    Args:
        points_rel: (P, 3) m, any origin, axes of the camera.
        points_image: (P, 2) px.
        focal, princpt: (2,) px.

    Returns:
        transl (3,) m of the origin of `points_rel` in `cam`, or None where no position in front of the camera fits.
    """
    ray = points_image - princpt  # (P, 2)
    count = len(points_rel)
    matrix = np.zeros((count, 2, 3))
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = focal[0], focal[1], -ray
    target = ray * points_rel[:, 2:] - focal * points_rel[:, :2]
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        return None
    transl, _, rank, _ = np.linalg.lstsq(matrix.reshape(-1, 3), target.reshape(-1), rcond=None)
    return transl if rank == 3 and (points_rel[:, 2] + transl[2]).min() > 0 else None


@dataclass(frozen=True)
class CaptureCamera:
    """The camera of an annotated image: metres to pixels of `image`.

    Attributes:
        focal, princpt: (2,) px.
        rotation, transl: X_cam = R X_world + t, (3, 3) and (3,) m; None where annotations are in `cam`.
        distortion: (4,) fisheye coefficients, see `distort_fisheye`; None for a pinhole.
    """

    focal: np.ndarray
    princpt: np.ndarray
    rotation: np.ndarray | None = None
    transl: np.ndarray | None = None
    distortion: np.ndarray | None = None


def world_to_cam(points_world: np.ndarray, rotation: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """(..., 3) m -> (..., 3) m, R X + t."""
    return points_world @ np.swapaxes(rotation, -1, -2) + transl


def distort_fisheye(xy: Tensor, distortion: Tensor) -> Tensor:
    """The point of a fisheye lens for the point x / z, y / z of a pinhole camera.

    theta = atan(r) becomes theta (1 + D0 theta^2 + D1 theta^4 + D2 theta^6 + D3 theta^8), OpenCV's fisheye model.

    Args:
        xy: (..., 2) at depth 1. A point on the axis stays there, where the published formula divides 0 by 0.
        distortion: (..., 4).
    """
    radius = torch.hypot(xy[..., :1], xy[..., 1:])
    theta = torch.atan(radius)
    square = theta * theta
    d0, d1, d2, d3 = distortion.split(1, -1)
    bent = theta * (1 + square * (d0 + square * (d1 + square * (d2 + square * d3))))
    return xy * torch.where(radius > 0, bent / radius, torch.ones_like(radius))


def project_capture(points_cam: np.ndarray, camera: CaptureCamera) -> np.ndarray:
    """(..., 3) m in `cam` -> (..., 2) px, with the distortion of the camera."""
    if camera.distortion is None:
        return project_pinhole(points_cam, camera.focal, camera.princpt)
    xy = torch.from_numpy(np.asarray(points_cam[..., :2] / points_cam[..., 2:], np.float64))
    return distort_fisheye(xy, torch.from_numpy(camera.distortion)).numpy() * camera.focal + camera.princpt
