"""The meshes from another side, where a wrong depth is seen at once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.drawing.raster import HandMesh
from common.drawing.render import render_hands

ANGLE = 70.0  # degrees: nearly from the side, with both hands still told apart
PAPER = (252, 226)  # grey at the top and at the bottom


def draw_side_view(
    image_size: tuple[int, int],
    hands: Sequence[HandMesh],
    together: bool,
    renderer: str = "auto",
    behind: np.ndarray | None = None,
) -> np.ndarray:
    """Draw hands turned about the vertical axis through their center, where they are in the photo.

    Args:
        image_size: (h, w) px, of the photo.
        together: the hands share a space and turn about their common center; otherwise each about its own.
        renderer: see `render_hands`.
        behind: (h, w, 3) uint8 RGB, the view of other people that is drawn over; default: blank paper.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    if behind is None:
        paper = np.linspace(*PAPER, image_size[0]).astype(np.uint8)[:, None, None]
        behind = np.tile(paper, (1, image_size[1], 3))
    groups = [list(hands)] if together else [[hand] for hand in hands]
    turned = [hand for group in groups if group for hand in turn(group, ANGLE)]
    return render_hands(behind, turned, renderer)


def turn(hands: Sequence[HandMesh], degrees: float) -> list[HandMesh]:
    """Turn hands about the vertical axis through their common center, their right end towards the viewer."""
    center = np.concatenate([hand.vertices_cam for hand in hands]).mean(0)
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return [replace(hand, vertices_cam=(hand.vertices_cam - center) @ rotation.T + center) for hand in hands]
