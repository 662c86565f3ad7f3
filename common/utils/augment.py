"""Augmentation as an explicit value: how it is drawn, and how an image is warped under it."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from common.utils.images import warp_image


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one image.

    Attributes:
        scale: factor on the body box, about its centre.
        rot: degrees by which the body box is turned, (x, y) -> (x cos - y sin, x sin + y cos).
        color: factors on red, green, blue.
        flip: mirror the image first.
    """

    scale: float = 1.0
    rot: float = 0.0
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    flip: bool = False


IDENTITY = Augmentation()


Fraction = Annotated[float, Meta(ge=0, le=1)]


class AugmentationRange(Struct, frozen=True):
    """The distribution an augmentation is drawn from; the defaults are the published ones."""

    scale: Annotated[float, Meta(ge=0, lt=1)] = 0.25  # scale = 1 + this * N(0, 1) clipped to [-1, 1]
    rot: Annotated[float, Meta(ge=-360, le=360)] = 30.0  # rot = this * N(0, 1) clipped to [-2, 2], degrees ...
    rot_probability: Fraction = 0.6  # ... with this probability, otherwise 0
    color: Fraction = 0.2  # colour factors are uniform in [1 - this, 1 + this]
    flip_probability: Fraction = 0.5


def draw_augmentation(rng: np.random.Generator, limits: AugmentationRange | None = None) -> Augmentation:
    """Draw one. The number of draws does not depend on what is drawn."""
    limits = limits or AugmentationRange()
    scale, rot = rng.standard_normal(2).tolist()
    rotate, flip = rng.random(2).tolist()
    red, green, blue = rng.uniform(1 - limits.color, 1 + limits.color, 3).tolist()
    return Augmentation(
        scale=1.0 + limits.scale * min(max(scale, -1.0), 1.0),
        rot=limits.rot * min(max(rot, -2.0), 2.0) if rotate < limits.rot_probability else 0.0,
        color=(red, green, blue),
        flip=flip < limits.flip_probability,
    )


def mirror_affine(image_to_crop: np.ndarray, width: int) -> np.ndarray:
    """(2, 3) from the mirrored image -> (2, 3) from the image itself, which then need not be mirrored."""
    linear = image_to_crop[:, :2] * (-1.0, 1.0)
    return np.concatenate((linear, image_to_crop[:, :1] * (width - 1) + image_to_crop[:, 2:]), 1)


def warp_augmented(
    image: np.ndarray, image_to_crop: np.ndarray, augmentation: Augmentation, crop_size: tuple[int, int]
) -> np.ndarray:
    """The crop of an image, before the colour factors.

    Args:
        image: (H, W, 3) uint8 or float32, which the crop keeps, see `warp_image`.
        image_to_crop: (2, 3), from the mirrored image where the augmentation flips.
        crop_size: (h, w).
    """
    source_to_crop = mirror_affine(image_to_crop, image.shape[1]) if augmentation.flip else image_to_crop
    return warp_image(image, source_to_crop, crop_size)
