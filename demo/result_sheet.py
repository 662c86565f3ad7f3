"""A contact sheet of the demo's results: photo, boxes, skeletons, meshes, the meshes from another side."""

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from common.drawing.sheets import PAPER, contact_sheet
from common.types import SIDES
from common.utils.images import load_image, turn_upright

TILE = 288  # px, side of an image on the sheet
MAX_PHOTOS = 40  # on a sheet
MARGIN = 1.35  # the close-ups show the square around both boxes, enlarged by this
KINDS = ("box", "skeleton", "mesh", "side")


def draw_result_sheet(folder: Path, photos: Mapping[Path, str]) -> np.ndarray:
    """Arrange the images that were written for each photo.

    Args:
        folder: the demo's --output.
        photos: file -> the NAME of its results; those without results are left out, and all beyond `MAX_PHOTOS`.

    Returns:
        (H, W, 3) uint8 RGB, a strip of five images per photo.

    Raises:
        UserError: a photo or one of its images cannot be read.
    """
    strips: list[list[np.ndarray]] = []
    captions: list[str] = []
    for path, name in photos.items():
        result = folder / "results" / f"{name}.json"
        if len(strips) == MAX_PHOTOS or not result.is_file():
            continue
        content = json.loads(result.read_bytes())
        people = [one["hands"] for one in content.get("people", [content])]
        shown = [(side, hands[side]) for hands in people for side in SIDES if "dropped" not in hands[side]]
        every = [hands[side] for hands in people for side in SIDES]
        photo = turn_upright(load_image(path), content.get("exif_orientation", 1))
        boxes = [hand["box_image"] for _, hand in shown] or [hand["box_image"] for hand in every]
        close_up = square_around(boxes, photo.shape[:2])
        strip = [cut(photo, whole(photo.shape[:2]))]
        strip += [cut(load_image(folder / "renders" / f"{name}_{kind}.jpg"), close_up) for kind in KINDS]
        strips.append(strip)
        confidences = ", ".join(f"{side} {hand['confidence']:.2f}" for side, hand in shown)
        if len(people) > 1:
            confidences = f"{len(people)} people, {len(shown)} hands"
        captions.append(f"{name}: {confidences or 'no hand'}")
    if not strips:
        return np.full((TILE, TILE, 3), PAPER, np.uint8)
    return contact_sheet(strips, captions, TILE)


def whole(image_size: tuple[int, int]) -> tuple[float, float, float]:
    """(h, w) -> the square around all of a photo: center x, y and half a side, px."""
    height, width = image_size
    return (width - 1) / 2, (height - 1) / 2, max(image_size) / 2


def square_around(boxes_image: list[list[float]], image_size: tuple[int, int]) -> tuple[float, float, float]:
    """Boxes (xyxy) -> the square around them, at most the one around the photo: center x, y and half a side, px."""
    boxes = np.asarray(boxes_image, np.float64)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    x, y, largest = whole(image_size)
    half = float((high - low).max()) / 2 * MARGIN
    if not 1 < half < largest:
        return x, y, largest
    return float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2, half


def cut(image: np.ndarray, square: tuple[float, float, float]) -> np.ndarray:
    """Cut a square out of an image, (TILE, TILE, 3); white where it reaches beyond."""
    x, y, half = square
    scale = TILE / (2 * half)
    if scale < 1:  # average, because sampling would skip pixels
        size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
        ratio = np.array(size) / image.shape[1::-1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        x, y = (x + 0.5) * ratio[0] - 0.5, (y + 0.5) * ratio[1] - 0.5
        scale = 1.0
    middle = (TILE - 1) / 2
    to_tile = np.array([[scale, 0, middle - scale * x], [0, scale, middle - scale * y]])
    return cv2.warpAffine(image, to_tile, (TILE, TILE), flags=cv2.INTER_LINEAR, borderValue=PAPER)
