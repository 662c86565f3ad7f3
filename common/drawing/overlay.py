"""Draw boxes and 2D skeletons on a photo: right hand purple, left hand green.

Line width and text follow the photo's size, and a small hand gets thinner lines. Coordinates are those of `Camera`:
pixel centers are integers. No prediction makes these functions fail: what is not finite is left out, and what lies
outside the photo is clipped before it reaches OpenCV, which refuses numbers that do not fit its integers.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from common.drawing.raster import FARTHEST_PIXEL
from common.drawing.render import HAND_RGB
from common.types import SIDES
from common.utils.joints import BONES, FINGERS

# Thumb to pinky, RGB: shades of the hand's colour, far enough apart to follow a finger.
FINGER_RGB = np.array(
    [
        [(255, 120, 225), (205, 75, 240), (150, 70, 250), (105, 105, 255), (150, 165, 255)],
        [(225, 235, 60), (150, 225, 50), (55, 200, 70), (20, 185, 140), (70, 225, 215)],
    ],
    np.uint8,
)
PERSON_RGB = (0.85, 0.65, 0.2)  # 0 to 1, as the hands'
OUTLINE_RGB = (25, 25, 25)
LINE_PER_PHOTO = 0.005  # line width as a share of the photo's longer side, at most
LINE_PER_HAND = 0.022  # and of the hand's, at most
TEXT_PER_PHOTO = 0.036  # height of a label as a share of the photo's longer side
LABEL_SHADE = 0.75  # white text needs a darker ground than the hands' colours
SHIFT = 4  # OpenCV takes coordinates in 1/2^SHIFT pixel


def draw_boxes(
    image_rgb: np.ndarray, boxes_image: np.ndarray, scores: np.ndarray | None, shown: np.ndarray
) -> np.ndarray:
    """Draw the hands' boxes, labelled with the side, and with what the score is.

    Args:
        image_rgb: (H, W, 3) uint8, left as it is.
        boxes_image: (2, 4) xyxy px, right then left. One with a NaN is left out.
        scores: (2,) in [0, 1], the heights of the detector's heatmap; None: not drawn, as for true boxes.
        shown: (2,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = np.array(image_rgb)
    boxes_image = np.clip(np.asarray(boxes_image, np.float64), -FARTHEST_PIXEL, FARTHEST_PIXEL)  # NaN stays NaN
    labels: list[tuple[int, int, int, int]] = []
    drawn = [side for side in range(len(SIDES)) if shown[side] and not np.isnan(boxes_image[side]).any()]
    for side in drawn:
        _draw_rectangle(canvas, boxes_image[side], HAND_RGB[side])
    for side in drawn:  # after both boxes, so that no line crosses a label
        text = SIDES[side] if scores is None else f"{SIDES[side]}, heatmap {float(scores[side]):.2f}"
        labels.append(_draw_label(canvas, text, boxes_image[side], HAND_RGB[side], labels))
    return canvas


def draw_person(image_rgb: np.ndarray, box_image: np.ndarray, number: int) -> np.ndarray:
    """Draw a person's box, labelled with the person's id.

    Args:
        image_rgb: (H, W, 3) uint8, left as it is.
        box_image: (4,) xyxy px, finite.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = np.array(image_rgb)
    _draw_rectangle(canvas, box_image, PERSON_RGB)
    _draw_label(canvas, f"person {number}", box_image, PERSON_RGB, [], below=True)
    return canvas


def draw_skeletons(image_rgb: np.ndarray, joints_image: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Draw the hands' bones and joints, a shade per finger.

    Args:
        image_rgb: (H, W, 3) uint8, left as it is.
        joints_image: (2, 21, 2) px, right then left, ordered as `joints.JOINTS`. Joints that are not finite, or
            absurdly far, are left out with their bones.
        shown: (2,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = np.array(image_rgb)
    for side in range(len(SIDES)):
        if shown[side]:
            _draw_skeleton(canvas, np.asarray(joints_image[side], np.float64), FINGER_RGB[side].tolist())
    return canvas


def _draw_skeleton(canvas: np.ndarray, joints: np.ndarray, finger_colours: list[list[int]]) -> None:
    finite = (np.abs(joints) < FARTHEST_PIXEL).all(axis=1)  # false for NaN, too
    if not finite.any() or not canvas.size:
        return
    width = _line_width(canvas, np.ptp(joints[finite], axis=0).max())
    outline = round(width / 3)  # none around the thinnest lines, whose colour it would hide
    bones_per_finger = len(BONES) // len(FINGERS)
    for index, (parent, child) in enumerate(BONES):
        if finite[parent] and finite[child]:
            colour = finger_colours[index // bones_per_finger]
            if outline:
                _draw_line(canvas, joints[parent], joints[child], OUTLINE_RGB, width + 2 * outline)
            _draw_line(canvas, joints[parent], joints[child], colour, width)
    for joint in np.flatnonzero(finite).tolist():
        colour = [255, 255, 255] if joint == 0 else finger_colours[(joint - 1) // bones_per_finger]
        if outline:
            _draw_dot(canvas, joints[joint], OUTLINE_RGB, width + outline)
        _draw_dot(canvas, joints[joint], colour, width)


def _line_width(canvas: np.ndarray, hand_size: float) -> int:
    """Pixels, for a hand of `hand_size` px."""
    return max(1, round(min(LINE_PER_PHOTO * max(canvas.shape[:2]), LINE_PER_HAND * hand_size)))


def _fixed(point: Sequence[float] | np.ndarray) -> tuple[int, int]:
    x, y = np.round(np.asarray(point) * 2**SHIFT).astype(int).tolist()
    return x, y


def _draw_dot(canvas: np.ndarray, point: np.ndarray, colour: Sequence[int], radius: int) -> None:
    height, width = canvas.shape[:2]
    if (point > -radius - 1).all() and (point < np.array([width, height]) + radius).all():
        cv2.circle(canvas, _fixed(point), radius << SHIFT, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _draw_line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, colour: Sequence[int], width: int) -> None:
    """The part of a line that can be seen."""
    size = np.array([canvas.shape[1], canvas.shape[0]])
    ends = _clip_segment(start, end, -2.0 * width, size + 2.0 * width)
    if ends is not None:
        cv2.line(canvas, _fixed(ends[0]), _fixed(ends[1]), colour, width, cv2.LINE_AA, SHIFT)


def _clip_segment(
    start: np.ndarray, end: np.ndarray, low: float, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of a segment within low <= x, y <= high, None if there is none (Liang and Barsky, 1984)."""
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low, at_high = (low - start) / step, (high - start) / step
    level = step == 0
    if (level & ((start < low) | (start > high))).any():
        return None
    enter = np.where(level, 0, np.minimum(at_low, at_high)).max()
    leave = np.where(level, 1, np.maximum(at_low, at_high)).min()
    enter, leave = max(enter, 0.0), min(leave, 1.0)
    if enter > leave:
        return None
    return np.clip(start + enter * step, low, high), np.clip(start + leave * step, low, high)


def _draw_rectangle(canvas: np.ndarray, box: np.ndarray, rgb: Sequence[float]) -> None:
    size = np.array([canvas.shape[1], canvas.shape[0]])
    width = _line_width(canvas, np.abs(box[2:] - box[:2]).max())
    # Sides that are cut off stay parallel to the image's, just beyond it.
    x0, y0, x1, y1 = np.concatenate([np.clip(corner, -4 * width, size + 4 * width) for corner in (box[:2], box[2:])])
    outline = round(width / 3)
    for colour, line in ((OUTLINE_RGB, width + 2 * outline), (_to_uint8(rgb), width)):
        cv2.rectangle(canvas, _fixed((x0, y0)), _fixed((x1, y1)), colour, line, cv2.LINE_AA, SHIFT)


def _to_uint8(rgb: Sequence[float], shade: float = 1.0) -> tuple[int, int, int]:
    red, green, blue = (round(255 * shade * c) for c in rgb)
    return red, green, blue


def _draw_label(
    canvas: np.ndarray,
    text: str,
    box: np.ndarray,
    rgb: Sequence[float],
    taken: list[tuple[int, int, int, int]],
    below: bool = False,
) -> tuple[int, int, int, int]:
    """White text on a darker shade of the colour, on top of the box, else below it, else inside.

    With `below`, below it first. Returns the label's rectangle, xyxy px.
    """
    height, width = canvas.shape[:2]
    font, wanted = cv2.FONT_HERSHEY_SIMPLEX, max(15, round(TEXT_PER_PHOTO * max(height, width)))
    thickness = max(1, round(wanted / 12))
    scale = cv2.getFontScaleFromHeight(font, round(wanted * 0.6), thickness)
    (text_width, text_height), _ = cv2.getTextSize(text, font, scale, thickness)
    pad = max(2, (wanted - text_height) // 2)
    label_width, label_height = text_width + 2 * pad, text_height + 2 * pad
    left, top, right, bottom = np.clip(box, 0, [width, height] * 2).round().astype(int).tolist()
    left, top, bottom = min(left, right), min(top, bottom), max(top, bottom)
    x = max(0, min(left, width - label_width))
    places = [top - label_height, bottom, top, bottom - label_height, top + label_height]
    for y in sorted(places, key=bottom.__ne__) if below else places:
        place = (x, y, x + label_width, y + label_height)
        if y >= 0 and y + label_height <= height and not any(_overlap(place, other) for other in taken):
            break
    else:
        y = max(0, min(top, height - label_height))
        place = (x, y, x + label_width, y + label_height)
    cv2.rectangle(canvas, place[:2], (place[2] - 1, place[3] - 1), _to_uint8(rgb, LABEL_SHADE), cv2.FILLED)
    cv2.putText(canvas, text, (x + pad, y + pad + text_height), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return place


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two xyxy rectangles share area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
