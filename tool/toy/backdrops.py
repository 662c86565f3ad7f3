"""Backgrounds of the toy images, and the painting that they share with skin and clothes. Colours are sRGB in 0..1."""

from collections.abc import Callable

import cv2
import numpy as np

SKIN_RGB = np.array(
    [
        [0.96, 0.80, 0.70],
        [0.91, 0.70, 0.57],
        [0.82, 0.59, 0.45],
        [0.66, 0.43, 0.30],
        [0.45, 0.28, 0.19],
        [0.31, 0.20, 0.15],
    ]
)


def sample_backdrop(rng: np.random.Generator, size: tuple[int, int], studio: bool = False) -> np.ndarray:
    """A background without hands, (h, w, 3) float32: noise, stripes, blobs or clutter; or a dark studio."""
    small = (max(2, size[0] // 2), max(2, size[1] // 2))
    makers = (_studio,) if studio else (_smooth, _stripes, _blobs, _clutter)
    make = makers[0 if studio else rng.choice(len(makers), p=(0.25, 0.2, 0.2, 0.35))]
    image = make(rng, small)
    image = cv2.GaussianBlur(image, (0, 0), rng.choice([0.4, rng.uniform(0.5, 3)]) * max(size) / 512)
    return np.clip(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), 0, 1)


def noise(rng: np.random.Generator, size: tuple[int, int], cell: float, channels: int = 1) -> np.ndarray:
    """(h, w, channels) float32 smooth noise of standard deviation about 1, its waves `cell` px long."""
    grid = (max(2, round(size[0] / cell) + 1), max(2, round(size[1] / cell) + 1), channels)
    values = rng.standard_normal(grid, np.float32)
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)


def paint(
    image: np.ndarray, draw: Callable[[np.ndarray], object], shade: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Paint a shape, in place.

    Args:
        image: (H, W, 3) float32.
        draw: puts the shape on a mask, (H, W) uint8.
        shade: gives the colours from the mask (h, w) and the image (h, w, 3) within the shape's bounding box.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    draw(mask)
    x, y, w, h = cv2.boundingRect(mask)
    if w and h:
        below, mask = image[y : y + h, x : x + w], mask[y : y + h, x : x + w]
        below += mask[..., None].astype(np.float32) / 255 * (shade(mask, below).astype(np.float32) - below)


def _colour(rng: np.random.Generator) -> np.ndarray:
    colour = rng.uniform(0.05, 0.9) + rng.choice([0.02, 0.05, 0.12]) * rng.standard_normal(3)
    return np.clip(colour, 0, 1).astype(np.float32)


def _smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    reach = max(size)
    image = _colour(rng) + 0.09 * noise(rng, size, reach / rng.uniform(1, 4))
    image += rng.choice([0.01, 0.03, 0.06]) * noise(rng, size, reach / rng.uniform(1, 4), 3)
    for cell in (12, 5, 2):
        image += rng.uniform(0, 0.05) * noise(rng, size, reach / 250 * cell)
    return image


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / max(size)
    bent = 0.02 * noise(rng, size, max(size) / 4, 2)
    image = np.broadcast_to(_colour(rng), (*size, 3)).copy()
    angle = rng.uniform(0, np.pi)
    for turn in (0, np.pi / 2)[: rng.integers(1, 3)]:
        across = (x + bent[..., 0]) * np.cos(angle + turn) + (y + bent[..., 1]) * np.sin(angle + turn)
        wave = np.sin(across * rng.uniform(30, 160))
        band = np.clip(0.5 + rng.uniform(0.7, 3) * wave, 0, 1)[..., None] * rng.uniform(0.3, 0.9)
        image = image * (1 - band) + _colour(rng) * band
    return image * (1 + 0.08 * noise(rng, size, max(size) / 3)) + 0.02 * noise(rng, size, 2)


def _blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    image = _smooth(rng, size)
    for _ in range(rng.integers(8, 40)):
        centre = (int(rng.uniform(0, size[1])), int(rng.uniform(0, size[0])))
        half = (np.exp(rng.uniform(np.log(0.01), np.log(0.16), 2)) * max(size)).astype(int) + 1
        cv2.ellipse(image, centre, half.tolist(), rng.uniform(0, 180), 0, 360, _colour(rng).tolist(), -1, cv2.LINE_AA)
    return image


def _clutter(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A wall, a table and things: boxes and cylinders lit from one side, cables; some of them skin-coloured."""
    height, width = size
    image = _smooth(rng, size)
    if rng.random() < 0.6:
        edge = int(height * rng.uniform(0.4, 0.85))
        image[edge:] = _colour(rng) + 0.06 * noise(rng, size, max(size) / 8)[edge:]
    light = rng.uniform(0.5, 0.9), rng.uniform(1.0, 1.2)  # on the left and on the right of each thing
    for _ in range(rng.integers(6, 22)):
        w, h = (np.exp(rng.uniform(np.log(0.03), np.log(0.35), 2)) * max(size)).astype(int) + 2
        box = cv2.boxPoints(((rng.uniform(0, width), rng.uniform(0, height)), (int(w), int(h)), rng.uniform(-30, 30)))
        corners = np.round(box).astype(np.int32)
        colour = _skin_like(rng) if rng.random() < 0.2 else _colour(rng)
        paint(
            image,
            lambda mask, corners=corners: cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA),
            lambda mask, below, colour=colour: np.linspace(*light, mask.shape[1])[None, :, None] * colour,
        )
    for _ in range(rng.integers(0, 4)):
        points = np.cumsum(rng.normal(0, 0.12, (5, 2)), 0) * max(size) + rng.uniform(0, 1, 2) * (width, height)
        colour = _colour(rng).tolist()
        cv2.polylines(image, [points.astype(np.int32)], False, colour, int(rng.integers(1, 5)), cv2.LINE_AA)
    return image


def _skin_like(rng: np.random.Generator) -> np.ndarray:
    return np.clip(SKIN_RGB[rng.integers(len(SKIN_RGB))] * rng.uniform(0.7, 1.1), 0, 1)


def _studio(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Dark, with a clothed body in the middle and the lamps of a capture stage out of focus."""
    height, width = size
    reach = max(size)
    image = np.full((*size, 3), rng.uniform(0.0, 0.08), np.float32) * (1 + 0.2 * noise(rng, size, reach / 3))
    for _ in range(rng.integers(3, 14)):
        at = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        light, radius = float(rng.uniform(0.3, 1)), int(reach * rng.uniform(0.005, 0.02)) + 1
        cv2.circle(image, at, radius, (light, light, light * 0.95), -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), reach * 0.004)
    if rng.random() < 0.8:
        middle, half = width * rng.uniform(0.2, 0.8), reach * rng.uniform(0.18, 0.3)
        top = height * rng.uniform(-0.2, 0.25)
        outline = np.array([(-0.5, 0), (0.5, 0), (1, 0.25), (1.1, 3), (-1.1, 3), (-1, 0.25)])
        body = (outline * half + (middle, top)).astype(np.int32)
        weave, strength = _stripes if rng.random() < 0.4 else _smooth, rng.uniform(0.3, 0.8)
        paint(
            image,
            lambda mask: cv2.GaussianBlur(cv2.fillPoly(mask, [body], 255, cv2.LINE_AA), (0, 0), reach * 0.004, mask),
            lambda mask, below: np.clip(weave(rng, mask.shape), 0, 1) * strength,
        )
    return image
