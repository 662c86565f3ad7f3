"""Single functions against those of the published system, for the same input."""

import json

import numpy as np
import pytest
import torch
from inputs import smooth_batch

from common.nets.hand_roi import crop_hands
from common.nets.trans_net import PEAK, gaussian, pair_box
from common.utils.affine import apply_affine, box_to_grid, image_to_crop, invert_affine, invert_affine_np
from common.utils.boxes import body_box, expand_xywh, iou, restore_box, sanitize_xywh
from common.utils.frames import Frames, rescale
from common.utils.heatmaps import sample_features, soft_argmax
from common.utils.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rot6d_to_matrix

FRAMES = Frames()


def check(ours, recorded: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest recorded value."""
    ours = ours.numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    assert ours.shape == recorded.shape
    assert np.abs(ours - recorded).max() <= tolerance * np.abs(recorded).max()


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("box/sanitize", sanitize_xywh),
        ("box/process_default", lambda box, size: body_box(box, size, FRAMES.crop, 1.25)),
        ("box/process_ext1", lambda box, size: body_box(box, size, FRAMES.crop, 1.0)),
        ("box/process_nosan", lambda box, size: expand_xywh(box, 0.75, 1.25)),
    ],
)
def test_boxes(unit, key, function):
    """41 boxes inside, over and beyond the image, empty and negative ones; None where the record is NaN."""
    width, height = unit["box/img_wh"]
    for box, recorded in zip(unit["box/in"], unit[key], strict=True):
        ours = function(box, (height, width))
        assert (ours is None) == np.isnan(recorded).all(), box
        if ours is not None:
            np.testing.assert_allclose(ours, recorded, rtol=1e-6, atol=1e-3)


def test_body_boxes_of_integers(golden):
    """55 person boxes, integers and floats: to the last bit of float32, in which the published system keeps them."""
    recorded = json.loads((golden / "body_boxes.json").read_text())
    assert len(recorded) == 55 and sum(box["integers"] for box in recorded) == 31
    for case in recorded:
        width, height = case["image_wh"]
        box = np.array(case["person_xywh"])
        assert np.issubdtype(box.dtype, np.integer) == case["integers"]
        ours = body_box(box, (height, width), FRAMES.crop, 1.25)
        if case["body_xywh"] is None:
            assert ours is None
        else:
            assert ours.astype(np.float32).tolist() == case["body_xywh"], case


def test_iou(unit):
    check(iou(unit["iou/b1"], unit["iou/b2"]), unit["iou/xyxy"])


def test_image_to_crop(unit):
    width, height = unit["affine/dst_wh"]
    for (cx, cy, w, h, scale, rot), there, back in zip(
        unit["affine/in_cx_cy_w_h_scale_rot"], unit["affine/trans"], unit["affine/inv_trans"], strict=True
    ):
        ours = image_to_crop(np.array([cx - w / 2, cy - h / 2, w, h]), (height, width), scale, rot)
        check(ours, there)
        check(invert_affine_np(ours), back)


@pytest.mark.parametrize(("key", "aspect", "extension"), [("none_1.0", None, 1.0), ("ar1_2.0", 1.0, 2.0)])
def test_restore_box(unit, key, aspect, extension):
    """Negative sizes included."""
    centers, sizes = (torch.from_numpy(unit[f"restore/{name}"]) for name in ("center", "size"))
    check(restore_box(centers, sizes, FRAMES, aspect, extension), unit[f"restore/{key}"])


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_soft_argmax(unit, dims):
    check(soft_argmax(torch.from_numpy(unit[f"softargmax/in{dims}"])), unit[f"softargmax/out{dims}"])


def test_sample_features(unit):
    features, xy = (torch.from_numpy(unit[f"samplefeat/{name}"]) for name in ("feat", "xy"))
    check(sample_features(features, xy), unit["samplefeat/out"])


@pytest.mark.parametrize("case", ["inside", "outside", "tiny", "full_nonsquare"])
def test_crop_hands(unit, case):
    """Each of two images cut by its box, as right and as left hand: patches to half a grey level, both transforms."""
    seed, count = unit["roi/img_seed_n"]
    images = torch.from_numpy(smooth_batch(seed, count))
    boxes_body = torch.from_numpy(unit[f"roi/{case}_bbox"])
    boxes_crop = rescale(boxes_body.unflatten(-1, (2, 2)), FRAMES.body, FRAMES.crop).flatten(-2)
    patches, crop_to_hand = crop_hands(images, boxes_crop[:, None].expand(-1, 2, -1), FRAMES.hand)
    for hand in range(2):
        check(crop_to_hand[:, hand], unit[f"roi/{case}_o2h"])
        check(invert_affine(crop_to_hand[:, hand]), unit[f"roi/{case}_h2o"])
        patch = patches[:, hand]
        assert np.abs(patch[..., 3::8, 3::8].numpy() - unit[f"roi/{case}_grid"]).max() < 0.5 / 255
        assert np.abs(patch[..., 127, :].numpy() - unit[f"roi/{case}_row127"]).max() < 0.5 / 255
        assert np.abs(patch.double().mean((2, 3)).numpy() - unit[f"roi/{case}_mean"]).max() < 1e-5


def test_pair_heatmaps(unit):
    """Both hands' joints -> the square around them -> the heatmaps of the translation network."""
    joints = torch.stack([torch.from_numpy(unit[f"trans/{side}joint_hm"]) for side in "rl"], 1)
    hand_to_crop = torch.stack([torch.from_numpy(unit[f"trans/{side}h2o"]) for side in "rl"], 1)
    joints_crop = apply_affine(hand_to_crop, rescale(joints, FRAMES.hand_hm, FRAMES.hand))
    check(joints_crop.transpose(0, 1)[..., :2], unit["trans/joint_img_space"][..., :2])
    box = pair_box(joints_crop)
    check(box, unit["trans/union_after"])
    placed = apply_affine(box_to_grid(box, FRAMES.pair_hm)[:, None], joints_crop)
    check(placed.transpose(0, 1), unit["trans/crop_out_before_z"])
    placed[..., 2] *= FRAMES.pair_bins / FRAMES.hand_bins
    x, y, z = (gaussian(placed.flatten(1, 2)[..., axis], 64) for axis in range(3))
    heatmaps = PEAK * torch.einsum("njz,njy,njx->njzyx", z, y, x).flatten(1, 2)
    check(heatmaps.sum((2, 3)), unit["trans/hm_ch_sum"], 2e-5)
    check(heatmaps.amax((2, 3)), unit["trans/hm_max"], 2e-5)


def test_rotations(unit):
    """6D, matrix and axis-angle, half turns among them (compared as rotations there)."""
    matrix = rot6d_to_matrix(torch.from_numpy(unit["rot/d6"]))
    check(matrix, unit["rot/mat"])
    axis_angle = matrix_to_axis_angle(torch.from_numpy(unit["rot/mat"]))
    assert axis_angle.norm(dim=-1).max() <= torch.pi + 1e-5
    check(axis_angle_to_matrix(torch.from_numpy(unit["rot/aa"])), unit["rot/aa_to_mat"])
    check(axis_angle_to_matrix(axis_angle), unit["rot/aa_to_mat"], 2e-5)


def test_joint_regressor(unit, mano):
    """Which vertices make the 21 joints, and with which weight."""
    dense = np.zeros((21, 778), np.float32)
    index = unit["mano/sh_joint_regressor_nnz_idx"]
    dense[index[:, 0], index[:, 1]] = unit["mano/sh_joint_regressor_nnz_val"]
    check(mano.joint_regressor, dense)
