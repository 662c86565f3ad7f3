"""Contact sheets: many images side by side, with titles and captions."""

from collections.abc import Sequence

import cv2
import numpy as np

from common.errors import one_line

FONT = cv2.FONT_HERSHEY_SIMPLEX
LINE = 30  # px, height of a line of text
TEXT_SCALE = 0.58  # of OpenCV's font; a line that is too long gets a smaller one
GAP = 6  # px between images
MARGIN = 12  # px around the sheet
PAPER, INK, PALE_INK = (255, 255, 255), (40, 40, 40), (110, 110, 110)  # RGB
PANEL = (236, 236, 236)  # RGB, around an image that does not fill its place
ONE_COLUMN = 3  # samples, at most, below each other; more go into two columns


def arrange(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size, (H, W, 3) uint8, in up to `columns` columns; empty places are white."""
    columns = min(columns, len(tiles))
    tiles = [*tiles, *[_blank(*tiles[0].shape[:2])] * (-len(tiles) % columns)]
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def contact_sheet(
    samples: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    titles: Sequence[str],
    height: int = 320,
    header: str = "",
) -> np.ndarray:
    """Arrange samples in one column or two, each a strip of images under a caption.

    Args:
        samples: images (H, W, 3) uint8 RGB of each sample; all samples have as many.
        captions: one per sample, may be empty; what OpenCV cannot draw appears as an escape.
        titles: one per image of a sample, on top of the sheet.
        height: px, of an image on the sheet. All images of a column have its first image's width.
        header: a line on top of the sheet.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    widths = [max(1, round(height * image.shape[1] / image.shape[0])) for image in samples[0]]
    strip_width = sum(widths) + GAP * (len(widths) - 1) + 2 * MARGIN
    lefts = [MARGIN + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    caption_height = LINE if any(captions) else 0

    def strip(images: Sequence[np.ndarray], caption: str) -> np.ndarray:
        paper = _blank(caption_height + height + GAP, strip_width)
        for image, left, width in zip(images, lefts, widths, strict=True):
            paper[caption_height : caption_height + height, left : left + width] = fit(image, (height, width))
        if caption:
            _text(paper, caption, MARGIN, 0, strip_width - 2 * MARGIN, INK)
        return paper

    strips = [strip(images, caption) for images, caption in zip(samples, captions, strict=True)]
    columns = 1 if len(strips) <= ONE_COLUMN else 2
    title_row = _blank(LINE, strip_width)
    for title, left, width in zip(titles, lefts, widths, strict=True):
        _text(title_row, title, left, 0, width, PALE_INK)
    rows = [np.concatenate([title_row] * columns, 1), arrange(strips, columns), _blank(MARGIN, columns * strip_width)]
    if header:
        top = _blank(LINE, columns * strip_width)
        _text(top, header, MARGIN, 0, columns * strip_width - 2 * MARGIN, INK)
        rows.insert(0, top)
    return np.concatenate(rows)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 in the middle of a panel of `size` (h, w), as large as fits; enlarged smoothly."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    if not top and not left:
        return scaled
    panel = np.full((*size, 3), PANEL, np.uint8)
    panel[top : top + height, left : left + width] = scaled
    return panel


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _text(image: np.ndarray, text: str, left: int, top: int, width: int, ink: tuple[int, int, int]) -> None:
    """One line of text, in a smaller font if it is wider than `width` px."""
    text = one_line(text)  # file names that are not UTF-8 crash OpenCV 5.0
    (wanted, _), _ = cv2.getTextSize(text, FONT, TEXT_SCALE, 1)
    scale = TEXT_SCALE * min(1.0, width / max(wanted, 1))
    cv2.putText(image, text, (left, top + LINE - 9), FONT, scale, ink, 1, cv2.LINE_AA)
