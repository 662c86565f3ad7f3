"""Many pictures on one: tiles side by side, with captions, histograms. Drawn with OpenCV alone."""

from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPTION = 22  # px, height of a line of text
GAP = 6  # px between tiles
PAPER, INK, BAR, MARK = (255, 255, 255), (40, 40, 40), (110, 150, 215), (215, 80, 60)  # RGB
PANEL = (260, 400)  # h, w of a histogram
MARGIN = (30, 44, 34, 16)  # top, left, bottom, right of the plot in it
BINS = 40
SHOWN_QUANTILE = 0.99  # what lies beyond is counted in the last bar, so that an outlier does not squeeze the rest


def arrange(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size, (H, W, 3) uint8, in up to `columns` columns; places that stay empty are white."""
    columns = min(columns, len(tiles))
    tiles = [*tiles, *[_blank(*tiles[0].shape[:2])] * (-len(tiles) % columns)]
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def contact_sheet(samples: Sequence[Sequence[np.ndarray]], captions: Sequence[str], height: int = 320) -> np.ndarray:
    """Samples in two columns, each a strip of pictures under a caption.

    Args:
        samples: pictures (H, W, 3) uint8 RGB of each sample; every sample has as many, of the same sizes.
        captions: one a sample.
        height: px, of a picture on the sheet.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    strips = []
    for pictures, caption in zip(samples, captions, strict=True):
        tiles = [_to_height(picture, height) for picture in pictures]
        strip = _blank(height + CAPTION, sum(tile.shape[1] + GAP for tile in tiles))
        x = 0
        for tile in tiles:
            strip[CAPTION:, x : x + tile.shape[1]] = tile
            x += tile.shape[1] + GAP
        _text(strip, caption, (2, CAPTION - 6))
        strips.append(strip)
    return arrange(strips, 2)


def histograms(values: dict[str, np.ndarray], units: dict[str, str]) -> np.ndarray:
    """A histogram for each set of numbers, three beside one another.

    Args:
        values: title -> numbers, NaN left out. Sets without a number are left out.
        units: title -> what stands at the axis.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = []
    for title, numbers in values.items():
        numbers = np.asarray(numbers, np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            panels.append(_histogram(title, numbers, units[title]))
    return arrange(panels or [_blank(*PANEL)], 3)


def _histogram(title: str, numbers: np.ndarray, unit: str) -> np.ndarray:
    picture = _blank(*PANEL)
    top, left, bottom, right = MARGIN
    floor, edge = PANEL[0] - bottom, PANEL[1] - right
    end = float(np.quantile(numbers, SHOWN_QUANTILE)) * 1.02 or 1.0
    counts, _ = np.histogram(np.clip(numbers, 0, end), BINS, (0, end))
    width = (edge - left) / BINS
    for index, count in enumerate(counts):
        x0, x1 = round(left + index * width), round(left + (index + 1) * width) - 1
        y = floor - round((floor - top) * count / counts.max())
        if count:
            cv2.rectangle(picture, (x0, min(y, floor - 1)), (max(x1, x0), floor), BAR, cv2.FILLED)
    cv2.line(picture, (left, floor), (edge, floor), INK)
    median = float(np.median(numbers))
    x = round(left + min(median / end, 1) * (edge - left))
    cv2.line(picture, (x, top), (x, floor), MARK, 1, cv2.LINE_AA)
    _text(picture, f"{title}: n {len(numbers)}, mean {numbers.mean():.1f}, median {median:.1f}", (8, 18))
    for share in (0, 0.25, 0.5, 0.75, 1):
        _text(picture, f"{share * end:.3g}", (round(left + share * (edge - left)) - 8, floor + 15), 0.36)
    _text(picture, unit, (edge - 8 * len(unit), floor + 29), 0.36)
    _text(picture, str(counts.max()), (4, top + 10), 0.36)
    return picture


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    smaller = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _text(picture: np.ndarray, text: str, at: tuple[int, int], size: float = 0.42) -> None:
    cv2.putText(picture, text, at, FONT, size, INK, 1, cv2.LINE_AA)
