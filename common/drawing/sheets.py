"""Contact sheets: many images side by side, with captions."""

from collections.abc import Sequence

import cv2
import numpy as np

from common.errors import one_line

FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPTION = 22  # px, height of a line of text
GAP = 6  # px between tiles
PAPER, INK = (255, 255, 255), (40, 40, 40)  # RGB


def arrange(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size, (H, W, 3) uint8, in up to `columns` columns; empty places are white."""
    columns = min(columns, len(tiles))
    tiles = [*tiles, *[_blank(*tiles[0].shape[:2])] * (-len(tiles) % columns)]
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def contact_sheet(samples: Sequence[Sequence[np.ndarray]], captions: Sequence[str], height: int = 320) -> np.ndarray:
    """Arrange samples in two columns, each a strip of images under a caption.

    Args:
        samples: images (H, W, 3) uint8 RGB of each sample; all samples have as many, of the same sizes.
        captions: one per sample; what OpenCV cannot draw appears as an escape.
        height: px, of an image on the sheet.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    strips = []
    for images, caption in zip(samples, captions, strict=True):
        tiles = [_to_height(image, height) for image in images]
        strip = _blank(height + CAPTION, sum(tile.shape[1] + GAP for tile in tiles))
        x = 0
        for tile in tiles:
            strip[CAPTION:, x : x + tile.shape[1]] = tile
            x += tile.shape[1] + GAP
        _text(strip, caption, (2, CAPTION - 6))
        strips.append(strip)
    return arrange(strips, 2)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _to_height(image: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    smaller = height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _text(image: np.ndarray, text: str, at: tuple[int, int]) -> None:
    # File names that are not UTF-8 crash OpenCV 5.0.
    cv2.putText(image, one_line(text), at, FONT, 0.42, INK, 1, cv2.LINE_AA)
