"""The meshes from another side, where a wrong depth is seen at once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.drawing.raster import HandMesh
from common.drawing.render import render_hands
from common.utils.camera import Camera, project

FILLED = 0.86  # of the frame, by the hands
ANGLE = 70.0  # degrees: nearly from the side, with both hands still told apart
PAPER = (252, 226)  # grey at the top and at the bottom


def draw_side_view(
    image_size: tuple[int, int], people: Sequence[tuple[Sequence[HandMesh], bool]], renderer: str = "auto"
) -> np.ndarray:
    """Draw hands turned about the vertical axis through their center, together as large as the frame allows.

    Args:
        image_size: (h, w) px, of the photo.
        people: the hands of each person, the nearest last, and whether they share a space and turn about their common
            center; otherwise each turns about its own.
        renderer: see `render_hands`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    turned = []
    for hands, together in people:
        groups = [list(hands)] if together else [[hand] for hand in hands]
        turned.append([hand for group in groups if group for hand in turn(group, ANGLE)])
    placed = iter(fill_frame([hand for hands in turned for hand in hands], image_size))
    canvas = np.tile(np.linspace(*PAPER, image_size[0]).astype(np.uint8)[:, None, None], (1, image_size[1], 3))
    for hands in turned:
        canvas = render_hands(canvas, [next(placed) for _ in hands], renderer)
    return canvas


def fill_frame(hands: Sequence[HandMesh], image_size: tuple[int, int]) -> list[HandMesh]:
    """Change the hands' cameras so that together they fill an image of (h, w)."""
    if not hands:
        return []
    points = np.concatenate([project(hand.vertices_cam, hand.camera) for hand in hands])
    points = points[np.isfinite(points).all(1)]
    size = np.array(image_size[::-1])
    if not len(points) or not np.ptp(points, 0).all():
        return list(hands)
    low, high = points.min(0), points.max(0)
    scale = FILLED * (size / (high - low)).min()
    shift = (size - 1) / 2 - scale * (low + high) / 2

    def moved(camera: Camera) -> Camera:
        return replace(camera, focal=scale * camera.focal, princpt=scale * camera.princpt + shift)

    return [replace(hand, camera=moved(hand.camera)) for hand in hands]


def turn(hands: Sequence[HandMesh], degrees: float) -> list[HandMesh]:
    """Turn hands about the vertical axis through their common center, their right end towards the viewer."""
    center = np.concatenate([hand.vertices_cam for hand in hands]).mean(0)
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return [replace(hand, vertices_cam=(hand.vertices_cam - center) @ rotation.T + center) for hand in hands]
