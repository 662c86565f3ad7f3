"""Properties of the geometry: inverses, round trips, mirrors, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.utils.affine import apply_affine, box_to_grid, image_to_crop, invert_affine, invert_affine_np
from common.utils.boxes import body_box, iou, sanitize_xywh
from common.utils.camera import Camera, place_before_camera, project
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import bin_to_depth, depth_to_bin, soft_argmax
from common.utils.mirror import mirror_image, mirror_points, mirror_rotation, mirror_translation
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix

SEEDS = st.integers(0, 2**32 - 1)
FRAMES = Frames()


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_affine_inverse(seed):
    a_to_b, points = normal(seed, 4, 2, 3), normal(seed + 1, 4, 7, 3)
    back = apply_affine(invert_affine(a_to_b), apply_affine(a_to_b, points))
    torch.testing.assert_close(back, points, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(invert_affine(a_to_b)[0], invert_affine_np(a_to_b[0].numpy()), rtol=1e-6, atol=1e-8)


@given(st.floats(-100, 500), st.floats(-100, 500), st.floats(1, 800), st.floats(1, 800))
@settings(max_examples=30, deadline=None)
def test_a_box_fills_its_grid(x, y, w, h):
    """Corners go to corners, and the crop transform without scale and turn is the same map."""
    box = torch.tensor([x, y, x + w, y + h], dtype=torch.float64)
    corners = apply_affine(box_to_grid(box, (512, 384)), box.view(2, 2))
    torch.testing.assert_close(corners, torch.tensor([[0, 0], [384, 512]], dtype=torch.float64), atol=1e-3, rtol=0)
    np.testing.assert_allclose(box_to_grid(box, (512, 384)), image_to_crop([x, y, w, h], (512, 384)), atol=1e-3)


@given(st.floats(0.75, 1.25), st.floats(-60, 60), SEEDS)
@settings(max_examples=30, deadline=None)
def test_crop_transform_turns_and_scales(scale, rot, seed):
    """A similarity by the given angle and scale, if the box has the crop's aspect."""
    x, y, w = np.abs(normal(seed, 3).numpy()) * 100 + 10
    linear = image_to_crop([x, y, w, w * 512 / 384], (512, 384), scale, rot)[:, :2]
    factor = 384 / w / scale
    angle = np.deg2rad(rot)
    expected = factor * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(linear, expected, rtol=1e-9, atol=1e-12)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_mirrors_undo_themselves(seed):
    points = normal(seed, 5, 3)
    for mirror in (lambda p: mirror_points(p, 256), mirror_rotation, mirror_translation):
        torch.testing.assert_close(mirror(mirror(points)), points)
    assert torch.equal(mirror_image(mirror_image(points)), points)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_projecting_a_mirrored_point_mirrors_its_projection(seed):
    """For a camera whose principal point is the middle column."""
    points_cam = normal(seed, 6, 3).numpy() * 0.1 + [0, 0, 2]
    camera = Camera(np.array([500.0, 500.0]), np.array([127.5, 100.0]), orthographic=False)
    mirrored = project(mirror_translation(torch.from_numpy(points_cam)).numpy(), camera)
    np.testing.assert_allclose(mirrored, mirror_points(torch.from_numpy(project(points_cam, camera)), 256))


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_rotating_a_mirrored_point_mirrors_the_rotated(seed):
    axis_angle, points = normal(seed, 3), normal(seed + 1, 8, 3)
    mirrored = mirror_translation(points) @ axis_angle_to_matrix(mirror_rotation(axis_angle)).T
    torch.testing.assert_close(mirrored, mirror_translation(points @ axis_angle_to_matrix(axis_angle).T))


@given(SEEDS, st.floats(0, np.pi))
@settings(max_examples=60, deadline=None)
def test_axis_angle_round_trip(seed, angle):
    """All angles from 0 to half a turn, as rotations; the angle never exceeds half a turn."""
    axis = normal(seed, 3)
    axis_angle = axis / axis.norm() * angle
    matrix = axis_angle_to_matrix(axis_angle)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    again = matrix_to_axis_angle(matrix)
    assert again.norm() <= np.pi + 1e-9
    torch.testing.assert_close(axis_angle_to_matrix(again), matrix, atol=1e-7, rtol=0)


@pytest.mark.parametrize("axis_angle", [[0.0, 0, 0], [1e-9, 0, 0], [0.3, -0.2, 0.1], [0, 3.1, 0], [2, 2, -1]])
def test_rotation_gradients(axis_angle):
    """Correct in double precision, also where the formulas divide by zero."""
    leaf = torch.tensor([axis_angle], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, leaf, atol=1e-5)
    assert torch.autograd.gradcheck(lambda x: matrix_to_axis_angle(axis_angle_to_matrix(x)), leaf, atol=1e-4)


@pytest.mark.parametrize(
    "rot6d", [[0.0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, -2, 0, 0], [0, 0, 0, 0, 1, 0], [1e-20] * 6, [1e8] * 6]
)
def test_degenerate_rotations_have_finite_gradients(rot6d):
    """Zero or parallel halves, as an untrained head gives them."""
    leaf = torch.tensor(rot6d, dtype=torch.float32, requires_grad=True)
    axis_angle = matrix_to_axis_angle(rot6d_to_matrix(leaf))
    axis_angle.sum().backward()
    assert axis_angle.isfinite().all() and leaf.grad.isfinite().all()


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_rot6d_gives_rotations(seed):
    matrix = rot6d_to_matrix(normal(seed, 4, 6))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(4, dtype=torch.float64))


def test_depth_bins():
    """The wrist is in the middle, the ends of the range at the ends of the axis, and back."""
    depth = torch.tensor([-0.15, 0.0, 0.15])
    assert depth_to_bin(depth, 8, 0.3).tolist() == pytest.approx([0, 4, 8])
    torch.testing.assert_close(bin_to_depth(depth_to_bin(depth, 64, 0.3), 64, 0.3), depth)


def test_soft_argmax_of_a_sharp_peak():
    """x, y, z in that order."""
    logits = torch.zeros(1, 1, 4, 5, 6)
    logits[0, 0, 1, 2, 3] = 100
    assert soft_argmax(logits)[0, 0].tolist() == [3, 2, 1]


def test_the_virtual_camera_looks_at_w_half():
    """Half the size, as published; the center between the first and the last pixel would be (W - 1) / 2."""
    assert FRAMES.princpt == (128, 128)
    assert Frames(hand=(64, 96)).princpt == (48, 32)


def test_rescale_keeps_depth():
    points = torch.tensor([[8.0, 4.0, 7.0]])
    assert rescale(points, (8, 8), (256, 128)).tolist() == [[128, 128, 7]]


@given(st.lists(st.floats(-300, 900), min_size=4, max_size=4), st.integers(1, 700), st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_a_sanitized_box_is_inside(box, height, width):
    kept = sanitize_xywh(np.array(box), (height, width))
    if kept is not None:
        x, y, w, h = kept
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width - 1 and y + h <= height - 1
        _, _, w, h = body_box(np.array(box), (height, width), FRAMES.crop, 1.25)
        assert w / h == pytest.approx(384 / 512)


def test_iou_of_boxes_turned_inside_out():
    """A negative box overlaps nothing and gives no division by zero."""
    box = torch.tensor([0.0, 0, 10, 10])
    assert iou(box, box) == pytest.approx(1, abs=1e-4)
    assert torch.isfinite(iou(box, box[[2, 3, 0, 1]])) and iou(box[:, None].T[0] * 0, box * 0) == 0


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_place_before_camera(seed):
    """A hand seen by a known camera is found again where it was."""
    points_rel = normal(seed, 21, 3).numpy() * 0.05
    transl = np.array([0.1, -0.2, 0.8]) + normal(seed + 1, 3).numpy() * 0.05
    camera = Camera(np.array([900.0, 950.0]), np.array([320.0, 240.0]), orthographic=False)
    points_image = project(points_rel + transl, camera)
    found = place_before_camera(points_rel, points_image, camera.focal, camera.princpt)
    np.testing.assert_allclose(found, transl, atol=1e-9)


def test_no_place_before_the_camera():
    """Points that only a hand behind the camera explains, and points that are NaN."""
    points_rel = normal(0, 21, 3).numpy() * 0.05
    behind = -points_rel[:, :2] * 1000
    assert place_before_camera(points_rel, behind, np.array([900.0, 900.0]), np.zeros(2)) is None
    assert place_before_camera(points_rel, behind * np.nan, np.array([900.0, 900.0]), np.zeros(2)) is None
