"""A contact sheet of the demo's results: photo, boxes, skeletons, meshes, the meshes from another side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.drawing.sheets import PAPER, contact_sheet, fit
from common.utils.images import load_image, turn_upright

TILE = 288  # px, side of an image on the sheet
MAX_PHOTOS = 40  # on a sheet
MARGIN = 1.35  # the close-ups show the square around both boxes, enlarged by this
SMALLEST = 16  # px, side of a close-up
# Ending of an image's name -> its title.
KINDS = {"box": "boxes", "skeleton": "2D skeletons", "mesh": "meshes", "side": "meshes from another side"}


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
    note = ""
    for path, name in photos.items():
        result = folder / "results" / f"{name}.json"
        if len(strips) == MAX_PHOTOS or not result.is_file():
            continue
        content = json.loads(result.read_bytes())
        note = content["network_note"] or note
        people = [one["hands"] for one in content.get("people", [content])]
        every = [hand["box_image"] for hands in people for hand in hands.values()]
        shown = [hand["box_image"] for hands in people for hand in hands.values() if "dropped" not in hand]
        photo = turn_upright(load_image(path), content.get("exif_orientation", 1))
        close_up = square_around(shown or every, photo.shape[:2])
        images = {kind: load_image(folder / "renders" / f"{name}_{kind}.jpg") for kind in KINDS}
        tiles = [images[kind] if kind == "side" else images[kind][close_up] for kind in KINDS]
        strips.append([fit(image, (TILE, TILE)) for image in (photo, *tiles)])
        captions.append(f"{name}: {describe(people)}")
    if not strips:
        return np.full((TILE, TILE, 3), PAPER, np.uint8)
    return contact_sheet(strips, captions, ("photo", *KINDS.values()), TILE, note)


def square_around(boxes_image: list[list[float]], image_size: tuple[int, int]) -> tuple[slice, slice]:
    """Boxes (xyxy) -> rows and columns of the photo, (h, w): the square around them, moved inside if possible."""
    boxes = np.asarray(boxes_image, np.float64)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    size = np.array(image_size[::-1])
    side = np.minimum(max(float(np.max(high - low)) * MARGIN, SMALLEST), size).round()
    start = np.clip((low + high - side) / 2, 0, size - side).round().astype(int)
    (x0, y0), (x1, y1) = start.tolist(), (start + side).astype(int).tolist()
    return slice(y0, y1), slice(x0, x1)


def describe(people: Sequence[Mapping[str, Mapping]]) -> str:
    """The hands reported in a photo, of each person side -> hand."""
    shown = [(side, hand) for hands in people for side, hand in hands.items() if "dropped" not in hand]
    if len(people) > 1:
        return f"{len(people)} people, {len(shown)} hands"
    return ", ".join(f"{side} (heatmap {hand['confidence']:.2f})" for side, hand in shown) or "0 hands reported"
