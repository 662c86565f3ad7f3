"""Degenerate numbers: nothing becomes NaN on the way, and gradients are right where they are defined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_criterion import prediction, targets  # noqa: F401
from test_data_targets import cache, recorded  # noqa: F401
from test_metrics import make_truth
from torch.autograd import gradcheck

from common.criterion import InterWildLoss
from common.errors import UserError
from common.metrics import PROTOCOLS, Evaluator
from common.nets.hand_roi import crop_hands
from common.nets.mano import TwoHandMano
from common.nets.mano_files import read_hand_models
from common.nets.trans_net import convolve_heatmaps
from common.targets import make_sample
from common.types import ManoParams
from common.utils.affine import apply_affine, box_to_grid, invert_affine
from common.utils.augment import IDENTITY, draw_augmentation
from common.utils.boxes import bbox_from_points, body_box, iou, restore_box, sanitize_xywh
from common.utils.camera import distort_fisheye, place_before_camera, project_pinhole
from common.utils.frames import Frames
from common.utils.heatmaps import sample_features, soft_argmax
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix
from main.build import build_model, open_source
from main.config import Config
from main.options import change_config, check_config, preset_config

FRAMES = Frames()


def leaf(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (numbers * scale).requires_grad_()


# ---- Gradients against differences, in double precision ----

GRADIENTS = {
    "6D to matrix": (rot6d_to_matrix, [leaf(5, 6)]),
    "6D to axis-angle": (lambda x: matrix_to_axis_angle(rot6d_to_matrix(x)), [leaf(5, 6, seed=1)]),
    "axis-angle": (axis_angle_to_matrix, [leaf(5, 3, scale=2.0)]),
    "pinhole": (
        lambda p, f, c: project_pinhole(p + torch.tensor([0.0, 0, 5]), f, c),
        [leaf(4, 3), leaf(2, seed=1), leaf(2, seed=2)],
    ),
    "fisheye": (distort_fisheye, [leaf(4, 2), leaf(4, 4, seed=1, scale=0.1)]),
    "affine": (lambda m, p: apply_affine(invert_affine(m), p), [leaf(2, 2, 3), leaf(2, 5, 3, seed=1)]),
    "box to grid": (lambda b: box_to_grid(b + torch.tensor([0.0, 0, 9, 9]), (8, 6)), [leaf(3, 4)]),
    "soft-argmax 2D": (soft_argmax, [leaf(1, 2, 3, 4)]),
    "soft-argmax 3D": (soft_argmax, [leaf(1, 2, 3, 2, 4)]),
    "sampling": (sample_features, [leaf(2, 3, 5, 4), (leaf(2, 4, 2).detach() * 0.7 + 2.23).requires_grad_()]),
    "heatmap convolution": (
        lambda j, w, b: convolve_heatmaps(j + 3, w, b, (3, 4, 5)),
        [leaf(2, 2, 3), leaf(2, 6, 3, 3, seed=1, scale=0.05), leaf(2, seed=2)],
    ),
    "restored box": (lambda c, s: restore_box(c, s + 9, FRAMES, 1.0, 2.0), [leaf(3, 2, 2), leaf(3, 2, 2, seed=1)]),
    "IoU": (lambda a: iou(a + torch.tensor([0.0, 0, 9, 9]), torch.tensor([1.0, 2, 9, 8])), [leaf(3, 4)]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    function, inputs = GRADIENTS[name]
    assert gradcheck(function, inputs, eps=1e-6, atol=1e-5)


def test_gradients_of_the_hand_layer(mano_folder):
    """The hand layer computes in single precision; its gradient is that of a layer in double, to that precision."""
    layer = TwoHandMano(*read_hand_models(mano_folder))
    torch.manual_seed(0)
    params = [torch.randn(1, 2, 3) * 0.5, torch.randn(1, 2, 15, 3) * 0.3, torch.randn(1, 2, 10)]
    direction = [torch.randn_like(x) for x in params]
    weight = torch.randn(1, 2, 778, 3)

    def total(step: float) -> torch.Tensor:
        moved = ManoParams(*(x + step * d for x, d in zip(params, direction, strict=True)))
        return (layer(moved)[0].double() * weight).sum()

    leaves = [x.clone().requires_grad_() for x in params]
    (layer(ManoParams(*leaves))[0].double() * weight).sum().backward()
    slope = sum(float((x.grad * d).sum()) for x, d in zip(leaves, direction, strict=True))
    assert float(total(1e-2) - total(-1e-2)) / 2e-2 == pytest.approx(slope, rel=2e-3)


# ---- Degenerate inputs ----


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e8, 1e18])
@pytest.mark.parametrize("kind", ["zero", "parallel", "opposite", "one half zero", "equal axes"])
def test_rotations_of_any_size(kind, scale):
    """Finite numbers and gradients, and always a matrix of entries from -1 to 1."""
    halves = {
        "zero": ([0, 0, 0], [0, 0, 0]),
        "parallel": ([1, 2, 3], [2, 4, 6]),
        "opposite": ([1, 0, 0], [-1, 0, 0]),
        "one half zero": ([0, 0, 0], [0, 1, 0]),
        "equal axes": ([1, 1, 1], [1, 1, 1 + 1e-7]),
    }[kind]
    rot6d = (torch.tensor([*halves[0], *halves[1]]) * scale).requires_grad_()
    matrix = rot6d_to_matrix(rot6d)
    angles = matrix_to_axis_angle(matrix)
    angles.sum().backward()
    assert matrix.abs().max() <= 1 + 1e-5 and angles.norm() <= np.pi + 1e-4
    assert rot6d.grad.isfinite().all()


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-7, np.pi, 2 * np.pi, 100.0, 1e4])
def test_axis_angles_of_any_size(angle):
    axis_angle = torch.tensor([angle, 0.0, 0.0], requires_grad=True)
    matrix = axis_angle_to_matrix(axis_angle)
    matrix.sum().backward()
    assert axis_angle.grad.isfinite().all()
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("betas", [0.0, 1e3, -1e6])
def test_hands_of_any_shape(mano, betas):
    """Shape coefficients beyond all sense give finite hands and gradients."""
    shape = torch.full((1, 2, 10), betas, requires_grad=True)
    vertices, joints = mano(ManoParams(torch.zeros(1, 2, 3), torch.zeros(1, 2, 15, 3), shape))
    vertices.square().mean().backward()
    assert vertices.isfinite().all() and joints.isfinite().all() and shape.grad.isfinite().all()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 0), (10, 10, 10, 10), (50, 50, 20, 20), (-1e6, -1e6, -1e6 + 1, -1e6 + 1), (1e6, 0, 1e6 + 50, 50),
     (0, 0, 1e7, 1e7), (0, 0, 1e-3, 60)],
)  # fmt: skip
def test_hands_are_cut_from_any_box(box):
    """No size, negative size, outside of the image: a patch of numbers, and two equal boxes give equal patches."""
    image = torch.rand(1, 3, 60, 40)
    patches, crop_to_hand = crop_hands(image, torch.tensor(box, dtype=torch.float32).expand(1, 2, 4), (16, 16))
    assert patches.isfinite().all() and crop_to_hand.isfinite().all()
    assert torch.equal(patches[:, 0], patches[:, 1])


def test_boxes_of_nothing():
    points = np.zeros((2, 3, 2))
    box, found = bbox_from_points(points, np.zeros((2, 3), bool), 1.2)
    assert not found.any() and np.isfinite(box).all()
    box, found = bbox_from_points(points, np.ones((2, 3), bool), 1.2)
    assert found.all() and (box[:, 2:] == 0).all()
    for empty in ((0, 0, 0, 0), (5, 5, -3, 4), (1e9, 0, 5, 5), (np.nan, 0, 5, 5), (0, 0, np.inf, np.nan)):
        assert sanitize_xywh(np.array(empty), (100, 100)) is None
    assert sanitize_xywh(np.array([0.0, 0, 1, 1]), (1, 1)) is None
    assert np.isfinite(body_box(np.array([-1e9, -1e9, 4e9, 4e9]), (100, 100), FRAMES.crop, 1.25)).all()


def test_no_hand_is_placed_by_nonsense():
    flat, image = np.zeros((21, 3)), np.zeros((21, 2))
    for points, pixels, focal in (
        (flat, image, np.ones(2)),
        (flat, image + np.nan, np.ones(2)),
        (flat + np.inf, image, np.ones(2)),
        (flat, image, np.zeros(2)),
        (flat, image + 1e300, np.ones(2) * 1e300),
    ):
        with np.errstate(all="ignore"):
            placed = place_before_camera(points, pixels, focal, np.zeros(2))
        assert placed is None or np.isfinite(placed).all()


def test_nothing_counts(prediction, targets):  # noqa: F811
    """No joint, box or fit is valid: all terms are 0, and so are the gradients."""
    blank = {name: torch.zeros_like(value) for name, value in targets._asdict().items() if "valid" in name}
    blank |= {name: torch.zeros_like(getattr(targets, name)) for name in ("joints_inside", "mano_joints_inside")}
    leaves = [x.clone().requires_grad_() for x in (prediction.joints_rel, prediction.joints_hand_hm)]
    moved = prediction._replace(joints_rel=leaves[0], joints_hand_hm=leaves[1])
    terms = InterWildLoss(FRAMES)(moved, targets._replace(**blank))
    assert all(value == 0 for value in terms.values())
    sum(terms.values()).backward()
    assert all((x.grad == 0).all() for x in leaves)


def test_training_with_one_sample(mano):
    """Batch norm over a single image, at the smallest sizes that are allowed: finite outputs and gradients."""
    torch.manual_seed(0)
    sizes = {"crop": "64,64", "body": "64,64", "body_hm": "16,16", "hand": "64,64", "hand_hm": "2,2"}
    sizes |= {"pair_hm": "16,16", "pair_bins": "16"}
    config = change_config(preset_config("small"), {"frames": sizes}, "")
    check_config(config)
    model = build_model(config, mano).train()
    result = model(torch.rand(1, 3, 64, 64))
    loss = result.vertices_rel.square().sum() + result.rel_transl.sum() + result.box_sizes_body_hm.sum()
    (loss + result.joints_proj_hand_hm.sum()).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(gradients) > 50 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("kind", ["no sample", "right hands only", "nothing is valid", "a hand without size"])
def test_test_sets_without_what_is_scored(mano, name, kind):
    """No interacting hands, nothing valid, no sample at all: results are numbers or 'no sample', never NaN."""
    evaluator = Evaluator(PROTOCOLS[name], mano)
    estimate, truth = make_truth(mano, hand_types=(0, 0, 0, 0))
    if kind == "nothing is valid":
        truth = truth._replace(
            boxes_valid=torch.zeros(4, 2), joints_scored=torch.zeros(4, 2, 21), vertices_valid=torch.zeros(4, 2),
            rel_transl_valid=torch.zeros(4),
        )  # fmt: skip
    if kind == "a hand without size":
        truth = truth._replace(vertices_cam=truth.vertices_cam * 0, joints_cam=truth.joints_cam * 0)
        estimate = estimate._replace(vertices_rel=estimate.vertices_rel * 0, joints_rel=estimate.joints_rel * 0)
    if kind != "no sample":
        evaluator.update(range(4), estimate, truth, truth.joints_scored)
    assert all(np.isfinite(value) for value in evaluator.compute().values())
    assert "nan" not in evaluator.summary().lower()
    if kind == "nothing is valid" and name != "ReInterHand":  # there a missing hand counts as one of zeros
        assert not evaluator.compute() and "bbox IoU: no sample" in evaluator.summary()


def test_no_batch_is_too_small_to_evaluate(mano):
    evaluator = Evaluator(PROTOCOLS["InterHand26M"], mano)
    estimate, truth = make_truth(mano)
    evaluator.update(range(0), type(estimate)(*(x[:0] for x in estimate)), type(truth)(*(x[:0] for x in truth)))
    assert len(evaluator) == 0 and not evaluator.compute()


# ---- Annotations ----


@pytest.fixture
def annotation(recorded, cache):  # noqa: F811
    return open_source("InterHand26M", "train", Config(), recorded / "data", cache).annotation(0)


def sample_of(annotation, augmentation=IDENTITY):
    height, width = annotation.image_size
    return make_sample(annotation, np.zeros((height, width, 3), np.uint8), augmentation, FRAMES, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e300])
@pytest.mark.parametrize("part", ["joints_image", "joints_cam", "boxes_image", "mano_transl", "mano"])
def test_numbers_beyond_all_measure_are_named(annotation, part, value):
    """Also those which only single precision cannot hold; and two of opposite sign do not hide each other."""
    changed = getattr(annotation, part)
    target = np.array(changed.betas if part == "mano" else changed, np.float64)
    target.flat[0], target.flat[1] = value, -value
    with pytest.raises(UserError, match="NaN or infinite"), np.errstate(all="ignore"):
        sample_of(replace(annotation, **{part: changed._replace(betas=target) if part == "mano" else target}))


def test_every_augmentation_gives_finite_samples(annotation):
    """Also of boxes far outside of the image and without size."""
    rng = np.random.default_rng(0)
    for box in ((0, 0, 0, 0), (-1e5, -1e5, -1e5, -1e5), (1e6, 1e6, 1e6 + 1, 1e6 + 1)):
        odd = replace(annotation, boxes_image=np.array([box, box], np.float64))
        for _ in range(5):
            sample = sample_of(odd, draw_augmentation(rng))
            assert all(x.isfinite().all() for x in sample if isinstance(x, torch.Tensor))
