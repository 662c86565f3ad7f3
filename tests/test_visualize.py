"""Drawing on photos: right places, right colours, and nothing a network predicts makes it fail."""

import numpy as np
import pytest

from common.drawing.overlay import FINGER_RGB, draw_boxes, draw_skeletons
from common.types import LEFT, RIGHT

BOTH = np.array([True, True])


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def fan(x: float, y: float, size: float) -> np.ndarray:
    """(21, 2) px: five straight fingers, fanned out from a wrist."""
    angles = np.deg2rad([-70, -35, 0, 35, 70])
    steps = np.array([0.4, 0.6, 0.8, 1.0]) * size
    tips = np.stack([np.sin(angles), -np.cos(angles)], -1)[:, None] * steps[:, None]
    return np.concatenate([[[x, y]], tips.reshape(20, 2) + [x, y]])


@pytest.mark.parametrize("size", [(100, 140), (512, 384), (4000, 6000)])
def test_bones_have_their_fingers_colour(size):
    height, width = size
    joints = np.stack([fan(x * width, 0.8 * height, 0.2 * width) for x in (0.25, 0.75)])
    image = grey(height, width)
    drawn = draw_skeletons(image, joints, BOTH)
    assert (image == 128).all()
    for side in (RIGHT, LEFT):
        for finger in range(5):
            joint = 4 * finger + 3
            column, row = np.round(joints[side, joint]).astype(int)
            assert np.abs(drawn[row, column].astype(int) - FINGER_RGB[side, finger]).max() <= 40, (side, finger)
            # Half way along a bone, whose line may be one blended pixel wide: closer to its colour than the photo.
            column, row = np.round((joints[side, joint] + joints[side, joint - 1]) / 2).astype(int)
            patch = drawn[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).astype(int)
            distance = np.abs(patch - FINGER_RGB[side, finger]).sum(1).min()
            assert distance < 0.6 * np.abs(FINGER_RGB[side, finger].astype(int) - 128).sum()


def test_what_is_not_shown_is_not_drawn():
    joints = np.stack([fan(60, 150, 60), fan(150, 150, 60)])
    boxes = np.array([[10, 60, 90, 160], [110, 60, 190, 160]])
    image = grey(200, 200)
    assert (draw_skeletons(image, joints, np.array([False, False])) == image).all()
    assert (draw_boxes(image, boxes, np.array([0.9, 0.8]), np.array([False, False])) == image).all()
    right_only = draw_skeletons(image, joints, np.array([True, False]))
    assert (right_only[:, 125:] == 128).all() and (right_only[:, :90] != 128).any()


def test_a_box_is_where_its_values_say():
    drawn = draw_boxes(grey(300, 400), np.array([[50, 100, 150, 200], [250, 100, 350, 200]]), np.array([1, 0.5]), BOTH)
    changed = (drawn != 128).any(-1)
    for x0, x1 in ((50, 150), (250, 350)):
        assert changed[100:201, [x0, x1]].all() and changed[[100, 200], x0:x1].all()
        assert not changed[110:190, x0 + 10 : x1 - 10].any()


@pytest.mark.parametrize("background", [0, 128, 255])
def test_a_label_can_be_read_on_any_background(background):
    image = np.full((512, 384, 3), background, np.uint8)
    box = np.array([[100, 200, 300, 400]] * 2)
    label = draw_boxes(image, box, np.array([0.93, 0]), np.array([True, False]))[182:196, 104:160].astype(int).sum(-1)
    assert label.max() > 700 and label.min() < 450  # white on dark, whatever is below


def test_labels_of_equal_boxes_do_not_hide_each_other():
    box = np.array([100.0, 200, 300, 400])
    one = draw_boxes(grey(512, 384), np.stack([box, box]), np.array([0.93, 0.4]), np.array([True, False]))
    both = draw_boxes(grey(512, 384), np.stack([box, box]), np.array([0.93, 0.4]), BOTH)
    assert (one[180:195, 104:160] == both[180:195, 104:160]).all()  # the right hand's label
    assert (both[404:420, 104:130] != 128).any()  # the left hand's, below


def test_lines_to_joints_far_outside_keep_their_direction():
    joints = np.full((2, 21, 2), np.nan)
    joints[0, 0], joints[0, 1] = [50, 50], [50 + 4e7, 50 + 2e7]  # slope 1/2
    drawn = draw_skeletons(grey(100, 100), joints, np.array([True, False]))
    changed = (drawn != 128).any(-1)
    assert changed[60, 70] and changed[70, 90] and not changed[70, 70] and not changed[:45].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 3e9, -(2.0**31), 0.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (120, 90)])
def test_wild_coordinates_are_survived(value, size):
    rng = np.random.default_rng(0)
    image = grey(*size)
    for fraction in (0.2, 1.0):
        joints, boxes = rng.uniform(-50, 200, (2, 21, 2)), rng.uniform(-50, 200, (2, 4))
        joints[rng.random(joints.shape) < fraction] = value
        boxes[rng.random(boxes.shape) < fraction] = value
        scores = np.array([value, 0.5])
        with np.errstate(all="raise"):
            assert draw_skeletons(image, joints, BOTH).shape == image.shape
            assert draw_boxes(image, boxes, scores, BOTH).shape == image.shape
    assert (image == 128).all()
